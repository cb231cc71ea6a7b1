//! The fast path of `lora`: eight rows of m at a time, so that x is read once for each eight ranks. Whole registers are
//! arrays of [`LANES`]: with single elements the checks of their bounds keep the compiler from using any.

use super::Args;
use crate::simd::{LANES, add_lanes, multiply_add};
use crate::{Call, multiversion};

const ROWS_A_TASK: usize = 32;
/// Rows of m that share one pass over x.
const BLOCK: usize = 8;
/// `outer` keeps the sums of so many registers' columns in the first-level cache while it walks down x.
const TILES_A_TASK: usize = 4;
/// Rows of x between a load and a store of those sums.
const ROWS_A_LOAD: usize = 4;
/// `outer` adds this many rows of x before it adds to g: bounds the growth of rounding, independent of threads.
const OUTER_ROWS: usize = 256;

pub(super) fn dot(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let (x, m) = (call.read::<f32>(), call.read::<f32>());
    let rank = args.rank as usize;
    let h = &mut call.write::<f32>()[..args.rows as usize * rank];
    call.workers.pieces(h, ROWS_A_TASK * rank.max(1), |task, piece| {
        let row = |i: usize| row(x, &args, task * ROWS_A_TASK + i);
        for (i, h) in piece.chunks_mut(2 * rank).enumerate() {
            match h.len() == 2 * rank {
                true => dot_pair([row(2 * i), row(2 * i + 1)], m, h),
                false => dot_row([row(2 * i)], m, h),
            }
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
    // Each task owns some registers' columns of BLOCK rows of g, gathered here and added afterwards.
    let mut sums = vec![[[0.0; LANES]; BLOCK]; blocks * columns];
    call.workers.pieces(&mut sums, TILES_A_TASK, |task, sums| {
        let mut index = task * TILES_A_TASK;
        let mut rest = sums;
        while !rest.is_empty() {
            let (block, column) = (index / columns, index % columns);
            let (strip, behind) = rest.split_at_mut(rest.len().min(columns - column));
            outer_strip(h, x, (&args, block * BLOCK, column * LANES), strip);
            index += strip.len();
            rest = behind;
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
    fn dot_row(x: [&[f32]; 1], m: &[f32], h: &mut [f32]) {
        dot_rows::<1, FMA>(x, m, h);
    }
}

multiversion! {
    fn dot_pair(x: [&[f32]; 2], m: &[f32], h: &mut [f32]) {
        dot_rows::<2, FMA>(x, m, h);
    }
}

/// h [ROWS, rank]. A register of m that is loaded serves all rows.
#[inline(always)]
fn dot_rows<const ROWS: usize, const FMA: bool>(x: [&[f32]; ROWS], m: &[f32], h: &mut [f32]) {
    let (width, rank) = (x[0].len(), h.len() / ROWS);
    let x = x.map(|x| x.as_chunks::<LANES>());
    let registers = width / LANES;
    for first in (0..rank).step_by(BLOCK) {
        let ranks = BLOCK.min(rank - first);
        let rows: [(&[[f32; LANES]], &[f32]); BLOCK] = std::array::from_fn(|r| {
            let r = first + r.min(ranks - 1);
            let (whole, rest) = m[r * width..(r + 1) * width].as_chunks();
            (&whole[..registers], rest)
        });
        let mut lanes = [[[0.0; LANES]; BLOCK]; ROWS];
        for k in 0..registers {
            for (x, lanes) in x.iter().zip(&mut lanes) {
                add_products::<FMA>(&x.0[k], std::array::from_fn(|r| &rows[r].0[k]), lanes);
            }
        }
        let rests: [[f32; LANES]; BLOCK] = std::array::from_fn(|r| padded(rows[r].1));
        for (j, (x, mut lanes)) in x.iter().zip(lanes).enumerate() {
            add_products::<FMA>(&padded(x.1), rests.each_ref(), &mut lanes);
            for r in 0..ranks {
                h[j * rank + first + r] = add_lanes(&lanes[r]);
            }
        }
    }
}

/// What is left of a row, and zeros.
#[inline(always)]
fn padded(rest: &[f32]) -> [f32; LANES] {
    let mut whole = [0.0; LANES];
    whole[..rest.len()].copy_from_slice(rest);
    whole
}

/// Each row is written out: from a loop over them the compiler makes vectors across rows, by gathers.
#[inline(always)]
fn add_products<const FMA: bool>(
    x: &[f32; LANES],
    m: [&[f32; LANES]; BLOCK],
    sum: &mut [[f32; LANES]; BLOCK],
) {
    let [s0, s1, s2, s3, s4, s5, s6, s7] = sum;
    add_product::<FMA>(x, m[0], s0);
    add_product::<FMA>(x, m[1], s1);
    add_product::<FMA>(x, m[2], s2);
    add_product::<FMA>(x, m[3], s3);
    add_product::<FMA>(x, m[4], s4);
    add_product::<FMA>(x, m[5], s5);
    add_product::<FMA>(x, m[6], s6);
    add_product::<FMA>(x, m[7], s7);
}

#[inline(always)]
fn add_product<const FMA: bool>(x: &[f32; LANES], m: &[f32; LANES], sum: &mut [f32; LANES]) {
    for i in 0..LANES {
        sum[i] = multiply_add::<FMA>(x[i], m[i], sum[i]);
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
    /// Sums of neighbouring registers' columns, from `first_column` on.
    fn outer_strip(h: &[f32], x: &[f32], place: (&Args, usize, usize), sums: &mut [[[f32; LANES]; BLOCK]]) {
        let (args, first_rank, first_column) = place;
        let (rank, rows) = (args.rank as usize, args.rows as usize);
        let ranks = BLOCK.min(rank - first_rank);
        let width = (args.width as usize - first_column).min(sums.len() * LANES);
        let row = |t: usize| &x[args.offset as usize + t * args.stride as usize + first_column..][..width];
        let factors = |t: usize| &h[t * rank + first_rank..][..ranks];
        for start in (0..rows).step_by(OUTER_ROWS) {
            let end = rows.min(start + OUTER_ROWS);
            let mut parts = [[[0.0f32; LANES]; BLOCK]; TILES_A_TASK];
            let parts = &mut parts[..sums.len()];
            for first in (start..end).step_by(ROWS_A_LOAD) {
                let group = first..end.min(first + ROWS_A_LOAD);
                for (tile, part) in parts.iter_mut().enumerate() {
                    let columns = tile * LANES..width.min((tile + 1) * LANES);
                    let mut sum = *part;
                    for t in group.clone() {
                        let (x, h) = (&row(t)[columns.clone()], factors(t));
                        // A whole tile, as nearly all are, stays in registers.
                        match (<&[f32; LANES]>::try_from(x), <&[f32; BLOCK]>::try_from(h)) {
                            (Ok(x), Ok(h)) => add_outer::<FMA>(h, x, &mut sum),
                            _ => add_ragged_outer::<FMA>(h, x, &mut sum),
                        }
                    }
                    *part = sum;
                }
            }
            for (sum, part) in sums.iter_mut().zip(&*parts) {
                for r in 0..ranks {
                    for i in 0..LANES {
                        sum[r][i] += part[r][i];
                    }
                }
            }
        }
    }
}

/// Rows written out, as in [`add_products`].
#[inline(always)]
fn add_outer<const FMA: bool>(h: &[f32; BLOCK], x: &[f32; LANES], sum: &mut [[f32; LANES]; BLOCK]) {
    let [s0, s1, s2, s3, s4, s5, s6, s7] = sum;
    add_row::<FMA>(h[0], x, s0);
    add_row::<FMA>(h[1], x, s1);
    add_row::<FMA>(h[2], x, s2);
    add_row::<FMA>(h[3], x, s3);
    add_row::<FMA>(h[4], x, s4);
    add_row::<FMA>(h[5], x, s5);
    add_row::<FMA>(h[6], x, s6);
    add_row::<FMA>(h[7], x, s7);
}

#[inline(always)]
fn add_row<const FMA: bool>(h: f32, x: &[f32; LANES], sum: &mut [f32; LANES]) {
    for i in 0..LANES {
        sum[i] = multiply_add::<FMA>(h, x[i], sum[i]);
    }
}

#[inline(always)]
fn add_ragged_outer<const FMA: bool>(h: &[f32], x: &[f32], sum: &mut [[f32; LANES]; BLOCK]) {
    for (sum, h) in sum.iter_mut().zip(h) {
        for (sum, x) in sum.iter_mut().zip(x) {
            *sum = multiply_add::<FMA>(*h, *x, *sum);
        }
    }
}
