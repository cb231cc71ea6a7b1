//! The specification of `cross_entropy`.

use crate::Real;

/// Returns the losses of the rows and the gradient [rows, columns].
pub fn forward_backward<R: Real>(
    logits: &[R],
    target: &[u32],
    masked: &[u32],
    weight: f64,
) -> (Vec<R>, Vec<R>) {
    let weight = R::from_f64(weight);
    let (mut losses, mut gradient) = (vec![], vec![]);
    let columns = logits.len() / target.len().max(1);
    for (r, row) in logits.chunks(columns.max(1)).enumerate() {
        let counts = |j: usize| masked[r * columns + j] == 0;
        let largest = (0..columns).filter(|j| counts(*j)).map(|j| row[j]).fold(R::neg_infinity(), R::max);
        let total = (0..columns).filter(|j| counts(*j)).map(|j| (row[j] - largest).exp()).sum::<R>();
        let log_sum = largest + total.ln();
        let t = target[r] as usize;
        losses.push(weight * (log_sum - row[t]));
        for j in 0..columns {
            let p = if counts(j) { (row[j] - log_sum).exp() } else { R::zero() };
            gradient.push(weight * (p - if j == t { R::one() } else { R::zero() }));
        }
    }
    (losses, gradient)
}
