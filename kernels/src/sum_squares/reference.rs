//! The specification of `sum_squares`.

use crate::Real;

/// Returns Σ x².
pub fn forward<R: Real>(x: &[R]) -> R {
    x.iter().map(|v| *v * *v).sum()
}
