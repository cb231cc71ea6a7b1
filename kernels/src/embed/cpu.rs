//! The fast path of `embed`: one row a time, rows cut among the threads.

use super::Args;
use crate::{Call, multiversion};

const ROWS_A_TASK: usize = 64;

pub(super) fn forward(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let (token, position, kind) = (call.read::<u32>(), call.read::<u32>(), call.read::<u32>());
    let (words, positions, kinds) = (call.read::<f32>(), call.read::<f32>(), call.read::<f32>());
    let hidden = args.hidden as usize;
    let out = &mut call.write::<f32>()[..args.tokens as usize * hidden];
    let row = |table: &'static str, data: &[f32], index: u32| {
        let start = index as usize * hidden;
        debug_assert!(start + hidden <= data.len(), "{table} row {index}");
        start..start + hidden
    };
    call.workers.pieces(out, ROWS_A_TASK * hidden.max(1), |task, piece| {
        for (r, target) in piece.chunks_exact_mut(hidden).enumerate() {
            let t = task * ROWS_A_TASK + r;
            let Some(word) = args.row(token[t]) else { continue };
            let word = &words[word * hidden..][..hidden];
            let place = &positions[row("position", positions, position[t])];
            add_three(word, place, &kinds[row("type", kinds, kind[t])], target);
        }
    });
}

pub(super) fn words(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let (token, words) = (call.read::<u32>(), call.read::<f32>());
    let hidden = args.hidden as usize;
    let out = &mut call.write::<f32>()[..args.tokens as usize * hidden];
    call.workers.pieces(out, ROWS_A_TASK * hidden.max(1), |task, piece| {
        for (r, target) in piece.chunks_exact_mut(hidden).enumerate() {
            if let Some(row) = args.row(token[task * ROWS_A_TASK + r]) {
                target.copy_from_slice(&words[row * hidden..][..hidden]);
            }
        }
    });
}

multiversion! {
    fn add_three(a: &[f32], b: &[f32], c: &[f32], out: &mut [f32]) {
        let _ = FMA;
        for i in 0..out.len() {
            out[i] = a[i] + b[i] + c[i];
        }
    }
}
