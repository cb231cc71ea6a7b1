//! The fast path of `lora`: eight rows of m at a time in registers, so that x is read once for each eight ranks.

use super::Args;
use crate::simd::{LANES, add_lanes, multiply_add};
use crate::{Call, multiversion};

const ROWS_A_TASK: usize = 32;
/// Rows of m that share one pass over x.
const BLOCK: usize = 8;
/// `outer` adds this many rows of x before it adds to g: bounds the growth of rounding, independent of threads.
const OUTER_ROWS: usize = 256;

pub(super) fn dot(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let (x, m) = (call.read::<f32>(), call.read::<f32>());
    let rank = args.rank as usize;
    let h = &mut call.write::<f32>()[..args.rows as usize * rank];
    call.workers.pieces(h, ROWS_A_TASK * rank.max(1), |task, piece| {
        for (i, h) in piece.chunks_exact_mut(rank).enumerate() {
            dot_row(row(x, &args, task * ROWS_A_TASK + i), m, h);
        }
    });
}

pub(super) fn expand(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let (h, m) = (call.read::<f32>(), call.read::<f32>());
    let y = call.write::<f32>();
    let (rows, rank) = (args.rows as usize, args.rank as usize);
    let (stride, width) = (args.stride as usize, args.width as usize);
    if rows == 0 {
        return;
    }
    // Pieces of whole strides; the last may be cut short behind its last row.
    let y = &mut y[args.offset as usize..][..(rows - 1) * stride + width];
    call.workers.pieces(y, ROWS_A_TASK * stride, |task, piece| {
        for (i, y) in piece.chunks_mut(stride).enumerate() {
            let t = task * ROWS_A_TASK + i;
            expand_row(&h[t * rank..(t + 1) * rank], m, args.scale, &mut y[..width]);
        }
    });
}

pub(super) fn outer(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let (h, x) = (call.read::<f32>(), call.read::<f32>());
    let (rank, width) = (args.rank as usize, args.width as usize);
    let g = &mut call.write::<f32>()[..rank * width];
    let blocks = rank.div_ceil(BLOCK);
    let columns = width.div_ceil(LANES);
    // Each task owns LANES columns of BLOCK rows of g, gathered here and added afterwards.
    let mut sums = vec![[[0.0; LANES]; BLOCK]; blocks * columns];
    call.workers.pieces(&mut sums, 4, |task, sums| {
        for (i, sum) in sums.iter_mut().enumerate() {
            let index = task * 4 + i;
            let (block, column) = (index / columns, index % columns);
            outer_tile(h, x, (&args, block * BLOCK, column * LANES), sum);
        }
    });
    for (index, sum) in sums.iter().enumerate() {
        let (block, column) = (index / columns, index % columns);
        for r in 0..BLOCK.min(rank - block * BLOCK) {
            let start = (block * BLOCK + r) * width + column * LANES;
            let count = LANES.min(width - column * LANES);
            for lane in 0..count {
                g[start + lane] += args.scale * sum[r][lane];
            }
        }
    }
}

fn row<'a>(x: &'a [f32], args: &Args, t: usize) -> &'a [f32] {
    &x[args.offset as usize + t * args.stride as usize..][..args.width as usize]
}

multiversion! {
    fn dot_row(x: &[f32], m: &[f32], h: &mut [f32]) {
        let width = x.len();
        let whole = width - width % LANES;
        for (block, h) in h.chunks_mut(BLOCK).enumerate() {
            let mut lanes = [[0.0; LANES]; BLOCK];
            let rows: [&[f32]; BLOCK] = std::array::from_fn(|r| {
                let r = block * BLOCK + r.min(h.len() - 1);
                &m[r * width..(r + 1) * width]
            });
            for start in (0..whole).step_by(LANES) {
                for r in 0..BLOCK {
                    for i in 0..LANES {
                        lanes[r][i] = multiply_add::<FMA>(x[start + i], rows[r][start + i], lanes[r][i]);
                    }
                }
            }
            for i in 0..width - whole {
                for r in 0..BLOCK {
                    lanes[r][i] = multiply_add::<FMA>(x[whole + i], rows[r][whole + i], lanes[r][i]);
                }
            }
            for (r, h) in h.iter_mut().enumerate() {
                *h = add_lanes(&lanes[r]);
            }
        }
    }
}

multiversion! {
    fn expand_row(h: &[f32], m: &[f32], scale: f32, y: &mut [f32]) {
        let width = y.len();
        for (block, h) in h.chunks(BLOCK).enumerate() {
            let factor: [f32; BLOCK] = std::array::from_fn(|r| if r < h.len() { scale * h[r] } else { 0.0 });
            let rows: [&[f32]; BLOCK] = std::array::from_fn(|r| {
                let r = block * BLOCK + r.min(h.len() - 1);
                &m[r * width..(r + 1) * width]
            });
            for n in 0..width {
                let mut sum = 0.0;
                for r in 0..BLOCK {
                    sum = multiply_add::<FMA>(factor[r], rows[r][n], sum);
                }
                y[n] += sum;
            }
        }
    }
}

multiversion! {
    fn outer_tile(h: &[f32], x: &[f32], place: (&Args, usize, usize), sum: &mut [[f32; LANES]; BLOCK]) {
        let (args, first_rank, first_column) = place;
        let (rank, count) = (args.rank as usize, LANES.min(args.width as usize - first_column));
        let ranks = BLOCK.min(rank - first_rank);
        let rows = args.rows as usize;
        for start in (0..rows).step_by(OUTER_ROWS) {
            let mut part = [[0.0f32; LANES]; BLOCK];
            for t in start..rows.min(start + OUTER_ROWS) {
                let from = args.offset as usize + t * args.stride as usize + first_column;
                let mut chunk = [0.0; LANES];
                chunk[..count].copy_from_slice(&x[from..from + count]);
                let h = &h[t * rank + first_rank..][..ranks];
                for (part, h) in part.iter_mut().zip(h) {
                    for i in 0..LANES {
                        part[i] = multiply_add::<FMA>(*h, chunk[i], part[i]);
                    }
                }
            }
            for r in 0..ranks {
                for i in 0..LANES {
                    sum[r][i] += part[r][i];
                }
            }
        }
    }
}
