//! The specification of `elementwise`.

use crate::Real;

/// Returns y + alpha·x.
pub fn add<R: Real>(alpha: f64, x: &[R], y: &[R]) -> Vec<R> {
    y.iter().zip(x).map(|(y, x)| *y + R::from_f64(alpha) * *x).collect()
}

/// Returns `count` times alpha.
pub fn fill<R: Real>(alpha: f64, count: usize) -> Vec<R> {
    vec![R::from_f64(alpha); count]
}
