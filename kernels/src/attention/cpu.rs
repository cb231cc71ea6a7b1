//! The fast path of `attention`: one task a text and key-value head. Keys and values are transposed once into
//! [head_dim, length], so that scores of one query are computed for a register of keys at a time; the scratch is
//! linear in the text's length.

use super::{Args, head_site};
use crate::dropout::cpu::keep_mask;
use crate::simd::{LANES, add_lanes, dot, exp, multiply_add};
use crate::{Call, multiversion};

/// Shared view of a buffer whose disjoint columns are written by different tasks.
struct Shared {
    start: *mut f32,
    length: usize,
}

// SAFETY: tasks write disjoint (text, head) columns, which `check` has asserted; see `row`.
unsafe impl Sync for Shared {}

impl Shared {
    fn new(data: &mut [f32]) -> Self {
        Shared { start: data.as_mut_ptr(), length: data.len() }
    }

    /// # Safety
    /// No other task touches these elements during the call.
    #[allow(clippy::mut_from_ref)]
    unsafe fn row(&self, start: usize, count: usize) -> &mut [f32] {
        assert!(start + count <= self.length, "attention writes inside its buffers");
        // SAFETY: in bounds by the assertion; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), count) }
    }
}

/// One text and key-value head.
#[derive(Clone, Copy)]
struct Place {
    start: usize,
    length: usize,
    kv_head: usize,
}

fn place(args: &Args, cumulative: &[u32], task: usize) -> Place {
    let kv_heads = args.kv_heads as usize;
    let (text, kv_head) = (task / kv_heads, task % kv_heads);
    let (start, end) = (cumulative[text] as usize, cumulative[text + 1] as usize);
    Place { start, length: end - start, kv_head }
}

/// Queries of the group that shares a key-value head.
fn heads_of(args: &Args, place: Place) -> std::ops::Range<usize> {
    let group = (args.heads / args.kv_heads.max(1)) as usize;
    place.kv_head * group..(place.kv_head + 1) * group
}

/// Asserts what keeps the writes of tasks apart: texts lie one behind the other, and the columns of q, k and v do
/// not overlap.
fn check(args: &Args, cumulative: &[u32]) {
    let texts = &cumulative[..=args.texts as usize];
    assert!(texts.is_sorted() && texts[args.texts as usize] <= args.tokens, "texts lie one behind the other");
    assert!(args.heads.is_multiple_of(args.kv_heads), "each key-value head has as many query heads");
    let column =
        |start: u32, heads: u32| (u64::from(start), u64::from(start) + u64::from(heads * args.head_dim));
    let mut columns =
        [column(args.query, args.heads), column(args.key, args.kv_heads), column(args.value, args.kv_heads)];
    columns.sort_unstable();
    let apart = columns.windows(2).all(|pair| pair[0].1 <= pair[1].0);
    assert!(apart && columns[2].1 <= u64::from(args.stride), "q, k and v are columns of their own");
}

pub(super) fn forward(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let (qkv, cumulative, rows) = (call.read::<f32>(), call.read::<u32>(), call.read::<u32>());
    check(&args, cumulative);
    let (out, log_sum_exp) = (Shared::new(call.write()), Shared::new(call.write()));
    let (dim, heads) = (args.head_dim as usize, args.heads as usize);
    call.workers.each(args.texts as usize * args.kv_heads as usize, |task| {
        let place = place(&args, cumulative, task);
        let width = place.length.next_multiple_of(LANES);
        let keys = transposed(qkv, &args, args.key, place);
        let mut p = vec![0.0; width];
        let mut mask = vec![1.0; width];
        for i in 0..place.length {
            let t = place.start + i;
            let seen = if args.causal == 1 { i + 1 } else { place.length };
            for head in heads_of(&args, place) {
                let q = &qkv[t * args.stride as usize + args.query as usize + head * dim..][..dim];
                let log_sum = softmax_row(q, &keys, args.scale, seen, &mut p);
                if args.dropout > 0.0 {
                    keep_mask(
                        dropout_key(&args, head),
                        [rows[2 * t], rows[2 * t + 1]],
                        args.dropout,
                        &mut mask,
                    );
                    p.iter_mut().zip(&mask).for_each(|(p, m)| *p *= m);
                }
                // SAFETY: row t of this head belongs to this task alone.
                let (target, sum) =
                    unsafe { (out.row((t * heads + head) * dim, dim), log_sum_exp.row(t * heads + head, 1)) };
                sum[0] = log_sum;
                let values = &qkv[place.start * args.stride as usize..];
                let column = args.value as usize + place.kv_head * dim;
                weigh_rows(&p[..seen], values, (args.stride as usize, column), target);
            }
        }
    });
}

/// Tokens of one task of `along`.
const TOKENS_A_TASK: usize = 64;

pub(super) fn along(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let (heads, dim) = (args.heads as usize, args.head_dim as usize);
    let (dout, out) = (call.read::<f32>(), call.read::<f32>());
    let along = &mut call.write::<f32>()[..args.tokens as usize * heads];
    call.workers.pieces(along, TOKENS_A_TASK * heads.max(1), |task, along| {
        let first = task * TOKENS_A_TASK * heads;
        for (i, along) in along.iter_mut().enumerate() {
            let span = (first + i) * dim..(first + i + 1) * dim;
            *along = inner(&dout[span.clone()], &out[span]);
        }
    });
}

pub(super) fn backward(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let (dout, qkv, along) = (call.read::<f32>(), call.read::<f32>(), call.read::<f32>());
    let (log_sum_exp, cumulative, rows) = (call.read::<f32>(), call.read::<u32>(), call.read::<u32>());
    check(&args, cumulative);
    let dqkv = Shared::new(call.write());
    let inputs = Inputs { args: &args, dout, qkv, along, log_sum_exp, rows };
    call.workers.each(args.texts as usize * args.kv_heads as usize, |task| {
        backward_place(&inputs, place(&args, cumulative, task), &dqkv);
    });
}

struct Inputs<'a> {
    args: &'a Args,
    dout: &'a [f32],
    qkv: &'a [f32],
    along: &'a [f32],
    log_sum_exp: &'a [f32],
    rows: &'a [u32],
}

fn backward_place(inputs: &Inputs<'_>, place: Place, dqkv: &Shared) {
    let args = inputs.args;
    let (dim, heads, stride) = (args.head_dim as usize, args.heads as usize, args.stride as usize);
    let width = place.length.next_multiple_of(LANES);
    let keys = transposed(inputs.qkv, args, args.key, place);
    let values = transposed(inputs.qkv, args, args.value, place);
    let (mut p, mut ds, mut mask) = (vec![0.0; width], vec![0.0; width], vec![1.0; width]);
    let (mut dk, mut dv) = (vec![0.0; place.length * dim], vec![0.0; place.length * dim]);
    for i in 0..place.length {
        let t = place.start + i;
        let seen = if args.causal == 1 { i + 1 } else { place.length };
        for head in heads_of(args, place) {
            let query = t * stride + args.query as usize + head * dim;
            let q = &inputs.qkv[query..query + dim];
            let at = (t * heads + head) * dim;
            let dout = &inputs.dout[at..at + dim];
            let log_sum = inputs.log_sum_exp[t * heads + head];
            products_row(q, &keys, args.scale, seen, &mut p);
            products_row(dout, &values, 1.0, seen, &mut ds);
            if args.dropout > 0.0 {
                let identity = [inputs.rows[2 * t], inputs.rows[2 * t + 1]];
                keep_mask(dropout_key(args, head), identity, args.dropout, &mut mask);
            }
            let along = inputs.along[t * heads + head];
            score_gradients((&mut p[..seen], &mut ds[..seen]), &mask[..seen], (log_sum, along, args.scale));
            // SAFETY: row t of this query head belongs to this task alone.
            let dq = unsafe { dqkv.row(query, dim) };
            let column = args.key as usize + place.kv_head * dim;
            weigh_rows(&ds[..seen], &inputs.qkv[place.start * stride..], (stride, column), dq);
            spread_rows((&p[..seen], &ds[..seen]), (dout, q), &mut dv, &mut dk);
        }
    }
    for i in 0..place.length {
        let row = (place.start + i) * stride + place.kv_head * dim;
        // SAFETY: row of this text and key-value head belongs to this task alone.
        unsafe {
            dqkv.row(row + args.key as usize, dim).copy_from_slice(&dk[i * dim..(i + 1) * dim]);
            dqkv.row(row + args.value as usize, dim).copy_from_slice(&dv[i * dim..(i + 1) * dim]);
        }
    }
}

fn dropout_key(args: &Args, head: usize) -> [u32; 4] {
    [args.seed_low, args.seed_high, args.step, head_site(args.site, head as u32)]
}

/// Columns of one head as [head_dim, length rounded up to LANES], padded with zeros.
fn transposed(qkv: &[f32], args: &Args, column: u32, place: Place) -> Vec<f32> {
    let (dim, stride) = (args.head_dim as usize, args.stride as usize);
    let width = place.length.next_multiple_of(LANES);
    let mut out = vec![0.0; dim * width];
    for i in 0..place.length {
        let row = &qkv[(place.start + i) * stride + column as usize + place.kv_head * dim..][..dim];
        for (d, value) in row.iter().enumerate() {
            out[d * width + i] = *value;
        }
    }
    out
}

/// p[j] = scale·Σ_d x[d]·columns[d, j] for the first `seen` of j, rounded up to a register.
#[inline(always)]
fn products<const FMA: bool>(x: &[f32], columns: &[f32], scale: f32, seen: usize, p: &mut [f32]) {
    let width = p.len();
    for start in (0..seen.next_multiple_of(LANES)).step_by(LANES) {
        let mut lanes = [0.0; LANES];
        for (d, value) in x.iter().enumerate() {
            let column = &columns[d * width + start..][..LANES];
            for i in 0..LANES {
                lanes[i] = multiply_add::<FMA>(*value, column[i], lanes[i]);
            }
        }
        for i in 0..LANES {
            p[start + i] = lanes[i] * scale;
        }
    }
}

multiversion! {
    fn products_row(x: &[f32], columns: &[f32], scale: f32, seen: usize, p: &mut [f32]) {
        products::<FMA>(x, columns, scale, seen, p);
    }
}

multiversion! {
    fn inner(x: &[f32], y: &[f32]) -> f32 {
        dot::<FMA>(x, y)
    }
}

multiversion! {
    /// Fills p[..seen] with probabilities and returns log Σ exp.
    fn softmax_row(q: &[f32], keys: &[f32], scale: f32, seen: usize, p: &mut [f32]) -> f32 {
        products::<FMA>(q, keys, scale, seen, p);
        let padded = seen.next_multiple_of(LANES);
        for value in &mut p[seen..padded] {
            *value = f32::NEG_INFINITY;
        }
        let mut largest = [f32::NEG_INFINITY; LANES];
        for chunk in p[..padded].chunks_exact(LANES) {
            for i in 0..LANES {
                largest[i] = if chunk[i] > largest[i] { chunk[i] } else { largest[i] };
            }
        }
        let largest = largest.iter().fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
        let mut lanes = [0.0; LANES];
        for chunk in p[..padded].chunks_exact_mut(LANES) {
            for i in 0..LANES {
                chunk[i] = exp::<FMA>(chunk[i] - largest);
                lanes[i] += chunk[i];
            }
        }
        let total = add_lanes(&lanes);
        let reciprocal = 1.0 / total;
        for value in &mut p[..padded] {
            *value *= reciprocal;
        }
        largest + total.ln()
    }
}

multiversion! {
    /// target = Σ_j p[j]·row_j, rows at `column` of `stride` columns.
    fn weigh_rows(p: &[f32], data: &[f32], layout: (usize, usize), target: &mut [f32]) {
        let (stride, column) = layout;
        let count = target.len();
        if count == 2 * LANES {
            let mut lanes = [[0.0; LANES]; 2];
            for (j, p) in p.iter().enumerate() {
                let row = &data[j * stride + column..][..2 * LANES];
                for half in 0..2 {
                    for i in 0..LANES {
                        lanes[half][i] = multiply_add::<FMA>(*p, row[half * LANES + i], lanes[half][i]);
                    }
                }
            }
            target[..LANES].copy_from_slice(&lanes[0]);
            target[LANES..].copy_from_slice(&lanes[1]);
            return;
        }
        target.fill(0.0);
        for (j, p) in p.iter().enumerate() {
            let row = &data[j * stride + column..][..count];
            for i in 0..count {
                target[i] = multiply_add::<FMA>(*p, row[i], target[i]);
            }
        }
    }
}

multiversion! {
    /// From scores and dp to (dropped-out) probabilities and scaled score gradients, in place.
    fn score_gradients(rows: (&mut [f32], &mut [f32]), mask: &[f32], scalars: (f32, f32, f32)) {
        let (p, ds) = rows;
        let (log_sum, along, scale) = scalars;
        for i in 0..p.len() {
            let probability = exp::<FMA>(p[i] - log_sum);
            p[i] = probability * mask[i];
            ds[i] = probability * (ds[i] * mask[i] - along) * scale;
        }
    }
}

multiversion! {
    /// dv_j += p[j]·dout and dk_j += ds[j]·q.
    fn spread_rows(weights: (&[f32], &[f32]), vectors: (&[f32], &[f32]), dv: &mut [f32], dk: &mut [f32]) {
        let (p, ds) = weights;
        let (dout, q) = vectors;
        let dim = q.len();
        for j in 0..p.len() {
            let (dv, dk) = (&mut dv[j * dim..][..dim], &mut dk[j * dim..][..dim]);
            for i in 0..dim {
                dv[i] = multiply_add::<FMA>(p[j], dout[i], dv[i]);
                dk[i] = multiply_add::<FMA>(ds[j], q[i], dk[i]);
            }
        }
    }
}
