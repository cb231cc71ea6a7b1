//! The specification of `rope`.

use super::Args;
use crate::Real;

/// Returns x [tokens, stride] with its heads rotated.
pub fn apply<R: Real>(x: &[R], positions: &[u32], theta: f64, args: &Args) -> Vec<R> {
    let (dim, mut y) = (args.head_dim as usize, x.to_vec());
    for token in 0..args.tokens as usize {
        for head in 0..args.heads as usize {
            let start = token * args.stride as usize + head * dim;
            for i in 0..dim / 2 {
                let angle = f64::from(positions[token]) * theta.powf(-2.0 * i as f64 / dim as f64);
                let sine = if args.inverse == 1 { -angle.sin() } else { angle.sin() };
                let (cosine, sine) = (R::from_f64(angle.cos()), R::from_f64(sine));
                let (first, second) = (x[start + i], x[start + i + dim / 2]);
                y[start + i] = first * cosine - second * sine;
                y[start + i + dim / 2] = second * cosine + first * sine;
            }
        }
    }
    y
}
