//! The specification of `squared_error`.

use crate::Real;

/// Returns the loss and its gradient.
pub fn forward_backward<R: Real>(x: &[R], label: &[R]) -> (R, Vec<R>) {
    let count = R::from_f64(x.len().max(1) as f64);
    let difference: Vec<R> = x.iter().zip(label).map(|(a, b)| *a - *b).collect();
    let loss = difference.iter().map(|d| *d * *d).sum::<R>() / count;
    (loss, difference.iter().map(|d| (*d + *d) / count).collect())
}
