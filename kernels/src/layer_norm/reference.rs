//! The specification of `layer_norm`.

use crate::Real;

/// Result of `forward`.
pub struct Normalised<R> {
    pub y: Vec<R>,
    pub mean: Vec<R>,
    pub reciprocal_deviation: Vec<R>,
}

/// `x` [rows, hidden], `gamma`, `beta` [hidden].
pub fn forward<R: Real>(x: &[R], gamma: &[R], beta: &[R], hidden: usize, epsilon: f64) -> Normalised<R> {
    let mut out = Normalised { y: vec![], mean: vec![], reciprocal_deviation: vec![] };
    let count = R::from_f64(hidden as f64);
    for row in x.chunks(hidden) {
        let mean = row.iter().copied().sum::<R>() / count;
        let variance = row.iter().map(|v| (*v - mean) * (*v - mean)).sum::<R>() / count;
        let reciprocal = R::one() / (variance + R::from_f64(epsilon)).sqrt();
        out.y.extend((0..hidden).map(|i| (row[i] - mean) * reciprocal * gamma[i] + beta[i]));
        out.mean.push(mean);
        out.reciprocal_deviation.push(reciprocal);
    }
    out
}

/// Returns dx [rows, hidden].
pub fn backward<R: Real>(dy: &[R], x: &[R], gamma: &[R], saved: &Normalised<R>, hidden: usize) -> Vec<R> {
    let mut dx = Vec::new();
    let count = R::from_f64(hidden as f64);
    for (r, (dy, x)) in dy.chunks(hidden).zip(x.chunks(hidden)).enumerate() {
        let (mean, reciprocal) = (saved.mean[r], saved.reciprocal_deviation[r]);
        let n: Vec<R> = x.iter().map(|v| (*v - mean) * reciprocal).collect();
        let g: Vec<R> = (0..hidden).map(|i| dy[i] * gamma[i]).collect();
        let mean_g = g.iter().copied().sum::<R>() / count;
        let mean_gn = (0..hidden).map(|i| g[i] * n[i]).sum::<R>() / count;
        dx.extend((0..hidden).map(|i| reciprocal * (g[i] - mean_g - n[i] * mean_gn)));
    }
    dx
}
