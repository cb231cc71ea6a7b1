//! The specification of `dropout`.

use super::philox::philox;
use super::{Args, key, threshold};
use crate::Real;

/// Whether element `feature` of the row `name` is kept; `place` is (seed_low, seed_high, step, site).
pub fn keeps(place: [u32; 4], name: [u32; 2], feature: u32, probability: f32) -> bool {
    let counter = [feature / 4, place[3], name[0], name[1]];
    philox(counter, key(place[0], place[1], place[2]))[(feature % 4) as usize] >= threshold(probability)
}

/// Returns y [rows, features]; x dense.
pub fn apply<R: Real>(x: &[R], names: &[u32], args: &Args) -> Vec<R> {
    let place = [args.seed_low, args.seed_high, args.step, args.site];
    let scale = R::one() / (R::one() - R::from_f64(f64::from(args.probability)));
    let mut y = vec![];
    for t in 0..args.rows as usize {
        for f in 0..args.features {
            let kept = keeps(place, [names[2 * t], names[2 * t + 1]], f, args.probability);
            y.push(if kept { x[t * args.features as usize + f as usize] * scale } else { R::zero() });
        }
    }
    y
}
