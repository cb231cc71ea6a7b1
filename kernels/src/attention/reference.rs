//! The specification of `attention`.

use super::{Args, head_site};
use crate::Real;
use crate::dropout::reference::keeps;

/// Result of `forward`.
pub struct Attended<R> {
    pub out: Vec<R>,
    pub log_sum_exp: Vec<R>,
}

/// Places of one query and the keys it sees.
struct Row {
    q: usize,
    head: usize,
    kv_head: usize,
    start: usize,
    end: usize,
}

fn each_row(cumulative_lengths: &[u32], args: &Args, mut visit: impl FnMut(Row)) {
    let group = (args.heads / args.kv_heads) as usize;
    for pair in cumulative_lengths.windows(2) {
        let (start, end) = (pair[0] as usize, pair[1] as usize);
        for q in start..end {
            for head in 0..args.heads as usize {
                let end = if args.causal == 1 { q + 1 } else { end };
                visit(Row { q, head, kv_head: head / group, start, end });
            }
        }
    }
}

fn factor<R: Real>(rows: &[u32], args: &Args, row: &Row, k: usize) -> R {
    if args.dropout == 0.0 {
        return R::one();
    }
    let key = [args.seed_low, args.seed_high, args.step, head_site(args.site, row.head as u32)];
    let identity = [rows[2 * row.q], rows[2 * row.q + 1]];
    if keeps(key, identity, (k - row.start) as u32, args.dropout) {
        R::one() / (R::one() - R::from_f64(f64::from(args.dropout)))
    } else {
        R::zero()
    }
}

/// Scores of one query against the keys it sees, scaled.
fn scores<R: Real>(x: &[R], args: &Args, row: &Row) -> Vec<R> {
    let (dim, stride) = (args.head_dim as usize, args.stride as usize);
    let q = &x[row.q * stride + args.query as usize + row.head * dim..][..dim];
    let score = |k: usize| {
        let key = &x[k * stride + args.key as usize + row.kv_head * dim..][..dim];
        R::from_f64(f64::from(args.scale)) * q.iter().zip(key).map(|(a, b)| *a * *b).sum::<R>()
    };
    (row.start..row.end).map(score).collect()
}

/// `x` is qkv [tokens, stride].
pub fn forward<R: Real>(x: &[R], cumulative_lengths: &[u32], rows: &[u32], args: &Args) -> Attended<R> {
    let (dim, stride, heads) = (args.head_dim as usize, args.stride as usize, args.heads as usize);
    let tokens = args.tokens as usize;
    let mut out = vec![R::zero(); tokens * heads * dim];
    let mut log_sum_exp = vec![R::zero(); tokens * heads];
    each_row(cumulative_lengths, args, |row| {
        let s = scores(x, args, &row);
        let largest = s.iter().copied().fold(R::neg_infinity(), R::max);
        let total = s.iter().map(|v| (*v - largest).exp()).sum::<R>();
        let log_sum = largest + total.ln();
        log_sum_exp[row.q * heads + row.head] = log_sum;
        for k in row.start..row.end {
            let p = (s[k - row.start] - log_sum).exp() * factor(rows, args, &row, k);
            for d in 0..dim {
                let v = x[k * stride + args.value as usize + row.kv_head * dim + d];
                let place = (row.q * heads + row.head) * dim + d;
                out[place] = out[place] + p * v;
            }
        }
    });
    Attended { out, log_sum_exp }
}

/// Σ_d dout∘out [tokens, heads].
pub fn along<R: Real>(dout: &[R], out: &[R], head_dim: usize) -> Vec<R> {
    let rows = dout.chunks(head_dim).zip(out.chunks(head_dim));
    rows.map(|(dout, out)| dout.iter().zip(out).map(|(a, b)| *a * *b).sum::<R>()).collect()
}

/// Returns dqkv [tokens, stride]. `statistics` are [`along`] and log Σ exp, both [tokens, heads].
pub fn backward<R: Real>(
    dout: &[R],
    x: &[R],
    statistics: [&[R]; 2],
    cumulative_lengths: &[u32],
    rows: &[u32],
    args: &Args,
) -> Vec<R> {
    let (dim, stride, heads) = (args.head_dim as usize, args.stride as usize, args.heads as usize);
    let scale = R::from_f64(f64::from(args.scale));
    let [along, log_sum_exp] = statistics;
    let mut dx = vec![R::zero(); x.len()];
    each_row(cumulative_lengths, args, |row| {
        let s = scores(x, args, &row);
        let place = (row.q * heads + row.head) * dim;
        let along = along[row.q * heads + row.head];
        for k in row.start..row.end {
            let p = (s[k - row.start] - log_sum_exp[row.q * heads + row.head]).exp();
            let kept: R = factor(rows, args, &row, k);
            let key = k * stride + args.key as usize + row.kv_head * dim;
            let value = k * stride + args.value as usize + row.kv_head * dim;
            let query = row.q * stride + args.query as usize + row.head * dim;
            let dp = kept * (0..dim).map(|d| dout[place + d] * x[value + d]).sum::<R>();
            let ds = p * (dp - along) * scale;
            for d in 0..dim {
                dx[query + d] = dx[query + d] + ds * x[key + d];
                dx[key + d] = dx[key + d] + ds * x[query + d];
                dx[value + d] = dx[value + d] + p * kept * dout[place + d];
            }
        }
    });
    dx
}
