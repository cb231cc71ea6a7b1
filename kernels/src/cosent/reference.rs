//! The specification of `cosent`.

use crate::Real;

/// Returns the loss and its gradient.
pub fn forward_backward<R: Real>(cosine: &[R], label: &[R], scale: f64) -> (R, Vec<R>) {
    let scale = R::from_f64(scale);
    let ordered = |i: usize, j: usize| label[i] < label[j];
    let pairs = || (0..cosine.len()).flat_map(|i| (0..cosine.len()).map(move |j| (i, j)));
    let difference = |i: usize, j: usize| scale * (cosine[i] - cosine[j]);
    let largest =
        pairs().filter(|(i, j)| ordered(*i, *j)).map(|(i, j)| difference(i, j)).fold(R::zero(), R::max);
    let mut total = (-largest).exp();
    for (i, j) in pairs().filter(|(i, j)| ordered(*i, *j)) {
        total = total + (difference(i, j) - largest).exp();
    }
    let loss = largest + total.ln();
    let mut gradient = vec![R::zero(); cosine.len()];
    for (i, j) in pairs().filter(|(i, j)| ordered(*i, *j)) {
        let share = scale * (difference(i, j) - loss).exp();
        gradient[i] = gradient[i] + share;
        gradient[j] = gradient[j] - share;
    }
    (loss, gradient)
}
