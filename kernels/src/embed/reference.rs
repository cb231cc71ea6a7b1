//! The specification of `embed`.

use super::Args;
use crate::Real;

/// `ids` of words, positions and types, and their tables. Writes rows of `out` [tokens, hidden].
pub fn forward<R: Real>(ids: [&[u32]; 3], tables: [&[R]; 3], args: &Args, out: &mut [R]) {
    let hidden = args.hidden as usize;
    for t in 0..args.tokens as usize {
        if let Some(row) = args.row(ids[0][t]) {
            for h in 0..hidden {
                let word = tables[0][row * hidden + h];
                let place = tables[1][ids[1][t] as usize * hidden + h];
                out[t * hidden + h] = word + place + tables[2][ids[2][t] as usize * hidden + h];
            }
        }
    }
}

/// Writes rows of `out` [tokens, hidden].
pub fn words<R: Real>(token: &[u32], word: &[R], args: &Args, out: &mut [R]) {
    let hidden = args.hidden as usize;
    for t in 0..args.tokens as usize {
        if let Some(row) = args.row(token[t]) {
            out[t * hidden..][..hidden].copy_from_slice(&word[row * hidden..][..hidden]);
        }
    }
}
