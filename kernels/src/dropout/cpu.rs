//! The fast path of `dropout`: blocks of [`LANES`] counters at a time, so that the rounds run in vector registers.

use super::philox::{philox, philox_lanes};
use super::{Args, key, threshold};
use crate::simd::LANES;
use crate::{Call, multiversion};

const ROWS_A_TASK: usize = 16;

pub(super) fn apply(call: &mut Call<'_>) {
    run(call, |value, factor, _| value * factor);
}

pub(super) fn apply_add(call: &mut Call<'_>) {
    run(call, |value, factor, before| before + value * factor);
}

fn run(call: &mut Call<'_>, combine: impl Fn(f32, f32, f32) -> f32 + Sync) {
    let args: Args = call.arguments();
    let (x, names) = (call.read::<f32>(), call.read::<u32>());
    let features = args.features as usize;
    let y = &mut call.write::<f32>()[..args.rows as usize * features];
    let place = [args.seed_low, args.seed_high, args.step, args.site];
    call.workers.pieces(y, ROWS_A_TASK * features.max(1), |task, piece| {
        let mut factors = vec![0.0; features];
        for (i, y) in piece.chunks_exact_mut(features).enumerate() {
            let t = task * ROWS_A_TASK + i;
            keep_mask(place, [names[2 * t], names[2 * t + 1]], args.probability, &mut factors);
            let x = &x[args.offset as usize + t * args.stride as usize..][..features];
            for i in 0..features {
                y[i] = combine(x[i], factors[i], y[i]);
            }
        }
    });
}

multiversion! {
    /// Fills `factors` with 0 or 1/(1 − p) for features 0, 1, ... of one row.
    pub(crate) fn keep_mask(place: [u32; 4], name: [u32; 2], probability: f32, factors: &mut [f32]) {
        let _ = FMA;
        let (key, limit) = (key(place[0], place[1], place[2]), threshold(probability));
        let scale = 1.0 / (1.0 - probability);
        let mut blocks = factors.chunks_exact_mut(4 * LANES);
        let mut first = 0;
        for block in &mut blocks {
            let words = philox_lanes(first, [place[3], name[0], name[1]], key);
            for lane in 0..LANES {
                for word in 0..4 {
                    block[lane * 4 + word] = if words[word][lane] >= limit { scale } else { 0.0 };
                }
            }
            first += LANES as u32;
        }
        for (i, factor) in blocks.into_remainder().iter_mut().enumerate() {
            let words = philox([first + (i / 4) as u32, place[3], name[0], name[1]], key);
            *factor = if words[i % 4] >= limit { scale } else { 0.0 };
        }
    }
}
