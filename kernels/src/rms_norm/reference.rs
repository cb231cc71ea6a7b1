//! The specification of `rms_norm`.

use crate::Real;

/// Result of `forward`.
pub struct Normalised<R> {
    pub y: Vec<R>,
    pub reciprocal_root: Vec<R>,
}

/// `x` [rows, hidden], `gamma` [hidden].
pub fn forward<R: Real>(x: &[R], gamma: &[R], epsilon: f64) -> Normalised<R> {
    let mut out = Normalised { y: vec![], reciprocal_root: vec![] };
    let count = R::from_f64(gamma.len() as f64);
    for row in x.chunks(gamma.len()) {
        let square = row.iter().map(|v| *v * *v).sum::<R>() / count;
        let reciprocal = R::one() / (square + R::from_f64(epsilon)).sqrt();
        out.y.extend(row.iter().zip(gamma).map(|(x, gamma)| *x * reciprocal * *gamma));
        out.reciprocal_root.push(reciprocal);
    }
    out
}

/// Returns dx [rows, hidden].
pub fn backward<R: Real>(dy: &[R], x: &[R], gamma: &[R], reciprocal_root: &[R]) -> Vec<R> {
    let hidden = gamma.len();
    let count = R::from_f64(hidden as f64);
    let mut dx = Vec::new();
    for ((dy, x), reciprocal) in dy.chunks(hidden).zip(x.chunks(hidden)).zip(reciprocal_root) {
        let n: Vec<R> = x.iter().map(|v| *v * *reciprocal).collect();
        let g: Vec<R> = (0..hidden).map(|i| dy[i] * gamma[i]).collect();
        let mean_gn = (0..hidden).map(|i| g[i] * n[i]).sum::<R>() / count;
        dx.extend((0..hidden).map(|i| *reciprocal * (g[i] - n[i] * mean_gn)));
    }
    dx
}
