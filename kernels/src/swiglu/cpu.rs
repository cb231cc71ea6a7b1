//! The fast path of `swiglu`: rows cut among the threads.

use super::Args;
use crate::simd::{exp, multiply_add};
use crate::{Call, multiversion};

const ROWS_A_TASK: usize = 16;

pub(super) fn forward(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let (x, width) = (call.read::<f32>(), args.width as usize);
    let y = &mut call.write::<f32>()[..args.rows as usize * width];
    call.workers.pieces(y, ROWS_A_TASK * width.max(1), |task, piece| {
        for (r, y) in piece.chunks_exact_mut(width).enumerate() {
            let row = (task * ROWS_A_TASK + r) * 2 * width;
            gated(&x[row..row + width], &x[row + width..row + 2 * width], y);
        }
    });
}

pub(super) fn backward(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let (dy, x, width) = (call.read::<f32>(), call.read::<f32>(), args.width as usize);
    let dx = &mut call.write::<f32>()[..args.rows as usize * 2 * width];
    call.workers.pieces(dx, ROWS_A_TASK * 2 * width.max(1), |task, piece| {
        for (r, dx) in piece.chunks_exact_mut(2 * width).enumerate() {
            let row = task * ROWS_A_TASK + r;
            let x = &x[row * 2 * width..(row + 1) * 2 * width];
            slopes(&dy[row * width..(row + 1) * width], x, dx);
        }
    });
}

/// 1/(1 + exp(−g)), 0 below −87, where exp(−g) is near the end of its range.
#[inline(always)]
fn share<const FMA: bool>(gate: f32) -> f32 {
    let value = 1.0 / (1.0 + exp::<FMA>(-gate));
    if gate < -87.0 { 0.0 } else { value }
}

multiversion! {
    fn gated(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for i in 0..y.len() {
            y[i] = gate[i] * share::<FMA>(gate[i]) * up[i];
        }
    }
}

multiversion! {
    fn slopes(dy: &[f32], x: &[f32], dx: &mut [f32]) {
        let width = dy.len();
        let (gate, up) = (&x[..width], &x[width..2 * width]);
        let (dgate, dup) = dx.split_at_mut(width);
        let dup = &mut dup[..width];
        for i in 0..width {
            let s = share::<FMA>(gate[i]);
            dgate[i] = dy[i] * up[i] * s * multiply_add::<FMA>(gate[i], 1.0 - s, 1.0);
            dup[i] = dy[i] * gate[i] * s;
        }
    }
}
