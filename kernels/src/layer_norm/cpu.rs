//! The fast path of `layer_norm`: a row fits the first-level cache, so three passes over it cost little.

use super::{Args, ResidualArgs};
use crate::simd::{LANES, add_lanes, multiply_add, sum};
use crate::{Call, multiversion};

const ROWS_A_TASK: usize = 32;

pub(super) fn forward(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let x = call.read::<f32>();
    let (rows, hidden) = (args.rows as usize, args.hidden as usize);
    let parameters = (&call.read::<f32>()[..hidden], &call.read::<f32>()[..hidden]);
    let (y, mean, reciprocal) = (call.write(), call.write(), call.write());
    let y = &mut y[..rows * hidden];
    let mut statistics = vec![[0.0; 2]; rows];
    let piece = ROWS_A_TASK * hidden.max(1);
    call.workers.pieces_of_two((y, piece), (&mut statistics, ROWS_A_TASK), |task, y, statistics| {
        let start = task * piece;
        normalise_rows(&x[start..start + y.len()], parameters, y, statistics, args.epsilon);
    });
    separate(&statistics, mean, reciprocal);
}

/// Keeps all, wanted or not: it is in the caches.
pub(super) fn residual_forward(call: &mut Call<'_>) {
    let args: ResidualArgs = call.arguments();
    let x: &mut [f32] = call.write();
    let residual = call.read::<f32>();
    let (rows, hidden) = (args.rows as usize, args.hidden as usize);
    let parameters = (&call.read::<f32>()[..hidden], &call.read::<f32>()[..hidden]);
    let (y, mean, reciprocal) = (call.write::<f32>(), call.write(), call.write());
    let mut statistics = vec![[0.0; 2]; rows];
    let piece = ROWS_A_TASK * hidden.max(1);
    let mut joint: Vec<(&mut [f32], &mut [[f32; 2]])> = Vec::new();
    for pair in y[..rows * hidden].chunks_mut(piece).zip(statistics.chunks_mut(ROWS_A_TASK)) {
        joint.push(pair);
    }
    call.workers.pieces_of_two((&mut x[..rows * hidden], piece), (&mut joint, 1), |task, x, joint| {
        let start = task * piece;
        add_rows(x, &residual[start..start + x.len()]);
        let (y, statistics) = &mut joint[0];
        normalise_rows(x, parameters, y, statistics, args.epsilon);
    });
    separate(&statistics, mean, reciprocal);
}

pub(super) fn backward(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let hidden = args.hidden as usize;
    let (dy, x, gamma) = (call.read::<f32>(), call.read::<f32>(), &call.read::<f32>()[..hidden]);
    let (mean, reciprocal) = (call.read::<f32>(), call.read::<f32>());
    let dx = &mut call.write::<f32>()[..args.rows as usize * hidden];
    call.workers.pieces(dx, ROWS_A_TASK * hidden.max(1), |task, piece| {
        for (r, dx) in piece.chunks_exact_mut(hidden).enumerate() {
            let row = task * ROWS_A_TASK + r;
            let span = row * hidden..(row + 1) * hidden;
            backward_row(&dy[span.clone()], &x[span], gamma, (mean[row], reciprocal[row]), dx);
        }
    });
}

fn separate(statistics: &[[f32; 2]], mean: &mut [f32], reciprocal: &mut [f32]) {
    for (row, pair) in statistics.iter().enumerate() {
        [mean[row], reciprocal[row]] = *pair;
    }
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
    fn normalise_rows(x: &[f32], parameters: (&[f32], &[f32]), y: &mut [f32], statistics: &mut [[f32; 2]], epsilon: f32) {
        let (gamma, beta) = parameters;
        let hidden = gamma.len();
        let count = hidden as f32;
        for ((x, y), pair) in x.chunks_exact(hidden).zip(y.chunks_exact_mut(hidden)).zip(statistics) {
            let mean = sum::<FMA>(x) / count;
            let mut lanes = [0.0; LANES];
            let whole = hidden - hidden % LANES;
            for chunk in x[..whole].chunks_exact(LANES) {
                for i in 0..LANES {
                    let d = chunk[i] - mean;
                    lanes[i] = multiply_add::<FMA>(d, d, lanes[i]);
                }
            }
            for i in 0..hidden - whole {
                let d = x[whole + i] - mean;
                lanes[i] = multiply_add::<FMA>(d, d, lanes[i]);
            }
            let reciprocal = 1.0 / (add_lanes(&lanes) / count + epsilon).sqrt();
            for i in 0..hidden {
                y[i] = multiply_add::<FMA>((x[i] - mean) * reciprocal, gamma[i], beta[i]);
            }
            *pair = [mean, reciprocal];
        }
    }
}

multiversion! {
    fn backward_row(dy: &[f32], x: &[f32], gamma: &[f32], statistics: (f32, f32), dx: &mut [f32]) {
        let (mean, reciprocal) = statistics;
        let hidden = gamma.len();
        let (mut sum_g, mut sum_gn) = ([0.0; LANES], [0.0; LANES]);
        let whole = hidden - hidden % LANES;
        for start in (0..whole).step_by(LANES) {
            for i in 0..LANES {
                let g = dy[start + i] * gamma[start + i];
                let n = (x[start + i] - mean) * reciprocal;
                sum_g[i] += g;
                sum_gn[i] = multiply_add::<FMA>(g, n, sum_gn[i]);
            }
        }
        for i in 0..hidden - whole {
            let g = dy[whole + i] * gamma[whole + i];
            let n = (x[whole + i] - mean) * reciprocal;
            sum_g[i] += g;
            sum_gn[i] = multiply_add::<FMA>(g, n, sum_gn[i]);
        }
        let mean_g = add_lanes(&sum_g) / hidden as f32;
        let mean_gn = add_lanes(&sum_gn) / hidden as f32;
        for i in 0..hidden {
            let n = (x[i] - mean) * reciprocal;
            dx[i] = reciprocal * (dy[i] * gamma[i] - mean_g - n * mean_gn);
        }
    }
}
