//! The fast path of `rope`: tokens cut among the threads.

use super::Args;
use crate::{Call, multiversion};

const TOKENS_A_TASK: usize = 16;

pub(super) fn apply(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let (positions, table) = (call.read::<u32>(), call.read::<f32>());
    let (dim, stride) = (args.head_dim as usize, args.stride as usize);
    let x = &mut call.write::<f32>()[..args.tokens as usize * stride];
    call.workers.pieces(x, TOKENS_A_TASK * stride.max(1), |task, piece| {
        for (t, row) in piece.chunks_exact_mut(stride).enumerate() {
            let position = positions[task * TOKENS_A_TASK + t] as usize;
            let (cosines, sines) = table[position * dim..(position + 1) * dim].split_at(dim / 2);
            let heads = &mut row[..args.heads as usize * dim];
            rotate(heads, cosines, sines, if args.inverse == 1 { -1.0 } else { 1.0 });
        }
    });
}

multiversion! {
    fn rotate(heads: &mut [f32], cosines: &[f32], sines: &[f32], sign: f32) {
        let _ = FMA;
        let half = cosines.len();
        let sines = &sines[..half];
        for head in heads.chunks_exact_mut(2 * half) {
            let (first, second) = head.split_at_mut(half);
            for i in 0..half {
                let (a, b, sine) = (first[i], second[i], sign * sines[i]);
                first[i] = a * cosines[i] - b * sine;
                second[i] = b * cosines[i] + a * sine;
            }
        }
    }
}
