//! The specification of `swiglu`.

use crate::Real;

fn share<R: Real>(gate: R) -> R {
    R::one() / (R::one() + (-gate).exp())
}

/// `x` [rows, 2·width]; returns y [rows, width].
pub fn forward<R: Real>(x: &[R], width: usize) -> Vec<R> {
    let mut y = Vec::new();
    for row in x.chunks(2 * width) {
        y.extend((0..width).map(|i| row[i] * share(row[i]) * row[width + i]));
    }
    y
}

/// Returns dx [rows, 2·width].
pub fn backward<R: Real>(dy: &[R], x: &[R], width: usize) -> Vec<R> {
    let mut dx = Vec::new();
    for (dy, row) in dy.chunks(width).zip(x.chunks(2 * width)) {
        let (gate, up) = row.split_at(width);
        dx.extend((0..width).map(|i| {
            let s = share(gate[i]);
            dy[i] * up[i] * s * (R::one() + gate[i] * (R::one() - s))
        }));
        dx.extend((0..width).map(|i| dy[i] * gate[i] * share(gate[i])));
    }
    dx
}
