//! The fast path of `pool`: texts cut among the threads, tokens added in order.

use super::{Args, Kind};
use crate::simd::add_scaled;
use crate::{Call, multiversion};

const TEXTS_A_TASK: usize = 8;

fn kind_of(number: u32) -> Kind {
    *Kind::ALL.get(number as usize).unwrap_or(&Kind::Mean)
}

pub(super) fn forward(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let (x, cumulative) = (call.read::<f32>(), call.read::<u32>());
    let hidden = args.hidden as usize;
    let kind = kind_of(args.kind);
    let out = &mut call.write::<f32>()[..args.texts as usize * hidden];
    call.workers.pieces(out, TEXTS_A_TASK * hidden.max(1), |task, piece| {
        for (r, out) in piece.chunks_exact_mut(hidden).enumerate() {
            let text = task * TEXTS_A_TASK + r;
            let (start, end) = (cumulative[text] as usize, cumulative[text + 1] as usize);
            out.fill(0.0);
            for t in start..end {
                let row = &x[t * hidden..(t + 1) * hidden];
                match kind {
                    Kind::Max if t == start => out.copy_from_slice(row),
                    Kind::Max => take_larger(row, out),
                    _ => {
                        let weight = kind.weight(t - start, end - start) as f32;
                        if weight != 0.0 {
                            accumulate(weight, row, out);
                        }
                    }
                }
            }
        }
    });
}

pub(super) fn backward(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let (dout, x, cumulative) = (call.read::<f32>(), call.read::<f32>(), call.read::<u32>());
    let dx = call.write::<f32>();
    let hidden = args.hidden as usize;
    let kind = kind_of(args.kind);
    for text in 0..args.texts as usize {
        let (start, end) = (cumulative[text] as usize, cumulative[text + 1] as usize);
        let dout = &dout[text * hidden..(text + 1) * hidden];
        for t in start..end {
            let weight = kind.weight(t - start, end - start) as f32;
            let row = &mut dx[t * hidden..(t + 1) * hidden];
            row.fill(0.0);
            accumulate(weight, dout, row);
        }
        if kind == Kind::Max && end > start {
            for h in 0..hidden {
                let at = |t: usize| x[t * hidden + h];
                let first_largest = |a: usize, b: usize| {
                    if at(b) > at(a) || at(b).is_nan() && !at(a).is_nan() { b } else { a }
                };
                dx[(start..end).fold(start, first_largest) * hidden + h] = dout[h];
            }
        }
    }
}

multiversion! {
    fn accumulate(weight: f32, row: &[f32], out: &mut [f32]) {
        add_scaled::<FMA>(weight, row, out);
    }
}

multiversion! {
    fn take_larger(row: &[f32], out: &mut [f32]) {
        let _ = FMA;
        for i in 0..out.len() {
            // False for NaN on either side: what is NaN stays, what comes as NaN is taken.
            out[i] = if row[i] <= out[i] || out[i].is_nan() { out[i] } else { row[i] };
        }
    }
}
