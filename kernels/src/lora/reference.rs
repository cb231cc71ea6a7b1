//! The specification of `lora`, on dense rows.

use crate::Real;

/// Returns h [rows, rank].
pub fn dot<R: Real>(x: &[R], m: &[R], (rank, width): (usize, usize)) -> Vec<R> {
    let mut h = vec![];
    for x in x.chunks(width) {
        for r in 0..rank {
            h.push((0..width).map(|n| x[n] * m[r * width + n]).sum());
        }
    }
    h
}

/// Returns what `expand` adds to y [rows, width].
pub fn expand<R: Real>(h: &[R], m: &[R], (rank, width): (usize, usize), scale: f64) -> Vec<R> {
    let mut y = vec![];
    for h in h.chunks(rank) {
        for n in 0..width {
            y.push(R::from_f64(scale) * (0..rank).map(|r| h[r] * m[r * width + n]).sum::<R>());
        }
    }
    y
}

/// Returns what `outer` adds to g [rank, width].
pub fn outer<R: Real>(h: &[R], x: &[R], (rank, width): (usize, usize), scale: f64) -> Vec<R> {
    let mut g = vec![R::zero(); rank * width];
    for (h, x) in h.chunks(rank).zip(x.chunks(width)) {
        for r in 0..rank {
            for n in 0..width {
                g[r * width + n] = g[r * width + n] + R::from_f64(scale) * h[r] * x[n];
            }
        }
    }
    g
}
