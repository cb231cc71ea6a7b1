//! The fast path of `rms_norm`: a row fits the first-level cache, so two passes over it cost little.

use super::Args;
use crate::simd::{LANES, add_lanes, dot, multiply_add};
use crate::{Call, multiversion};

const ROWS_A_TASK: usize = 32;

pub(super) fn forward(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let x = call.read::<f32>();
    let (rows, hidden) = (args.rows as usize, args.hidden as usize);
    let gamma = &call.read::<f32>()[..hidden];
    let (y, reciprocal) = (call.write::<f32>(), call.write::<f32>());
    let piece = ROWS_A_TASK * hidden.max(1);
    let (y, reciprocal) = (&mut y[..rows * hidden], &mut reciprocal[..rows]);
    call.workers.pieces_of_two((y, piece), (reciprocal, ROWS_A_TASK), |task, y, reciprocal| {
        normalise_rows(&x[task * piece..][..y.len()], gamma, args.epsilon, y, reciprocal);
    });
}

pub(super) fn residual_forward(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let x: &mut [f32] = call.write();
    let residual = call.read::<f32>();
    let (rows, hidden) = (args.rows as usize, args.hidden as usize);
    let gamma = &call.read::<f32>()[..hidden];
    let (y, reciprocal) = (call.write::<f32>(), call.write::<f32>());
    let piece = ROWS_A_TASK * hidden.max(1);
    let pairs = y[..rows * hidden].chunks_mut(piece).zip(reciprocal[..rows].chunks_mut(ROWS_A_TASK));
    let mut joint: Vec<_> = pairs.collect();
    call.workers.pieces_of_two((&mut x[..rows * hidden], piece), (&mut joint, 1), |task, x, joint| {
        add_rows(x, &residual[task * piece..][..x.len()]);
        let (y, reciprocal) = &mut joint[0];
        normalise_rows(x, gamma, args.epsilon, y, reciprocal);
    });
}

pub(super) fn backward(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let hidden = args.hidden as usize;
    let (dy, x, gamma) = (call.read::<f32>(), call.read::<f32>(), &call.read::<f32>()[..hidden]);
    let reciprocal = call.read::<f32>();
    let dx = &mut call.write::<f32>()[..args.rows as usize * hidden];
    call.workers.pieces(dx, ROWS_A_TASK * hidden.max(1), |task, piece| {
        for (r, dx) in piece.chunks_exact_mut(hidden).enumerate() {
            let row = task * ROWS_A_TASK + r;
            let span = row * hidden..(row + 1) * hidden;
            dx.copy_from_slice(&dy[span.clone()]);
            backward_row(dx, &x[span], gamma, reciprocal[row]);
        }
    });
}

multiversion! {
    fn add_rows(x: &mut [f32], residual: &[f32]) {
        let _ = FMA;
        for (a, b) in x.iter_mut().zip(residual) {
            *a += b;
        }
    }
}

multiversion! {
    /// Rows of the length of `gamma`; each gets its reciprocal root.
    pub(crate) fn normalise_rows(x: &[f32], gamma: &[f32], epsilon: f32, y: &mut [f32], reciprocal: &mut [f32]) {
        let hidden = gamma.len();
        for ((x, y), root) in x.chunks_exact(hidden).zip(y.chunks_exact_mut(hidden)).zip(reciprocal) {
            *root = 1.0 / (dot::<FMA>(x, x) / hidden as f32 + epsilon).sqrt();
            for i in 0..hidden {
                y[i] = x[i] * *root * gamma[i];
            }
        }
    }
}

multiversion! {
    /// Turns dy of one row into dx.
    pub(crate) fn backward_row(gradient: &mut [f32], x: &[f32], gamma: &[f32], reciprocal: f32) {
        let hidden = gamma.len();
        let mut sum = [0.0; LANES];
        let whole = hidden - hidden % LANES;
        for start in (0..whole).step_by(LANES) {
            for i in 0..LANES {
                let g = gradient[start + i] * gamma[start + i];
                sum[i] = multiply_add::<FMA>(g, x[start + i] * reciprocal, sum[i]);
            }
        }
        for i in 0..hidden - whole {
            let g = gradient[whole + i] * gamma[whole + i];
            sum[i] = multiply_add::<FMA>(g, x[whole + i] * reciprocal, sum[i]);
        }
        let mean = add_lanes(&sum) / hidden as f32;
        for i in 0..hidden {
            gradient[i] = reciprocal * (gradient[i] * gamma[i] - x[i] * reciprocal * mean);
        }
    }
}
