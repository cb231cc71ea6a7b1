//! The fast path of `head_norm`: tokens cut among the threads, a head a row of `rms_norm`.

use super::Args;
use crate::Call;
use crate::rms_norm::cpu::{backward_row, normalise_rows};

const TOKENS_A_TASK: usize = 16;

/// Elements of a token's row: its q heads, its k heads, all.
fn widths(args: &Args) -> [usize; 3] {
    [args.heads, args.normalised(), args.all()].map(|heads| (heads * args.head_dim) as usize)
}

pub(super) fn forward(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let (x, dim) = (call.read::<f32>(), args.head_dim as usize);
    let (query, key) = (&call.read::<f32>()[..dim], &call.read::<f32>()[..dim]);
    let (y, reciprocal) = (call.write::<f32>(), call.write::<f32>());
    let ([query_end, key_end, width], roots) = (widths(&args), args.normalised() as usize);
    let (tokens, heads) = (args.tokens as usize, args.heads as usize);
    let (y, reciprocal) = (&mut y[..tokens * width], &mut reciprocal[..tokens * roots]);
    let piece = (TOKENS_A_TASK * width, TOKENS_A_TASK * roots);
    call.workers.pieces_of_two((y, piece.0), (reciprocal, piece.1), |task, y, reciprocal| {
        let x = &x[task * piece.0..][..y.len()];
        let rows =
            x.chunks_exact(width).zip(y.chunks_exact_mut(width)).zip(reciprocal.chunks_exact_mut(roots));
        for ((x, y), roots) in rows {
            let (query_roots, key_roots) = roots.split_at_mut(heads);
            normalise_rows(&x[..query_end], query, args.epsilon, &mut y[..query_end], query_roots);
            let keys = query_end..key_end;
            normalise_rows(&x[keys.clone()], key, args.epsilon, &mut y[keys], key_roots);
            y[key_end..].copy_from_slice(&x[key_end..]);
        }
    });
}

pub(super) fn backward(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let (gradient, x, dim) = (call.write::<f32>(), call.read::<f32>(), args.head_dim as usize);
    let (query, key) = (&call.read::<f32>()[..dim], &call.read::<f32>()[..dim]);
    let reciprocal = call.read::<f32>();
    let ([_, key_end, width], roots) = (widths(&args), args.normalised() as usize);
    let gradient = &mut gradient[..args.tokens as usize * width];
    call.workers.pieces(gradient, TOKENS_A_TASK * width.max(1), |task, piece| {
        for (t, gradient) in piece.chunks_exact_mut(width).enumerate() {
            let token = task * TOKENS_A_TASK + t;
            let x = &x[token * width..][..key_end];
            let heads = gradient[..key_end].chunks_exact_mut(dim).zip(x.chunks_exact(dim));
            for (head, (gradient, x)) in heads.enumerate() {
                let gamma = if head < args.heads as usize { query } else { key };
                backward_row(gradient, x, gamma, reciprocal[token * roots + head]);
            }
        }
    });
}
