//! The specification of `pool`.

use super::Kind;
use crate::Real;

/// Index of the token that holds the maximum of feature `h`; the first of equals.
fn argmax<R: Real>(x: &[R], (start, end): (usize, usize), h: usize, hidden: usize) -> usize {
    let mut best = start;
    for t in start..end {
        if x[t * hidden + h] > x[best * hidden + h] {
            best = t;
        }
    }
    best
}

fn spans(cumulative_lengths: &[u32]) -> impl Iterator<Item = (usize, usize)> + '_ {
    cumulative_lengths.windows(2).map(|pair| (pair[0] as usize, pair[1] as usize))
}

/// Returns out [texts, hidden].
pub fn forward<R: Real>(x: &[R], cumulative_lengths: &[u32], hidden: usize, kind: Kind) -> Vec<R> {
    let mut out = vec![];
    for (start, end) in spans(cumulative_lengths) {
        for h in 0..hidden {
            let sum = (start..end)
                .map(|t| R::from_f64(kind.weight(t - start, end - start)) * x[t * hidden + h])
                .sum::<R>();
            let is_max = kind == Kind::Max && end > start;
            out.push(if is_max { x[argmax(x, (start, end), h, hidden) * hidden + h] } else { sum });
        }
    }
    out
}

/// Returns dx [tokens, hidden].
pub fn backward<R: Real>(
    dout: &[R],
    x: &[R],
    cumulative_lengths: &[u32],
    hidden: usize,
    kind: Kind,
) -> Vec<R> {
    let mut dx = vec![R::zero(); x.len()];
    for (text, (start, end)) in spans(cumulative_lengths).enumerate() {
        for h in 0..hidden {
            let d = dout[text * hidden + h];
            for t in start..end {
                dx[t * hidden + h] = d * R::from_f64(kind.weight(t - start, end - start));
            }
            if kind == Kind::Max && end > start {
                dx[argmax(x, (start, end), h, hidden) * hidden + h] = d;
            }
        }
    }
    dx
}
