//! The specification of `pool`.

use super::Kind;
use crate::Real;

/// Index of the token that holds the maximum of feature `h`; the first of equals, the first NaN before all.
fn argmax<R: Real>(x: &[R], (start, end): (usize, usize), h: usize, hidden: usize) -> usize {
    let mut best = start;
    for t in start..end {
        let (value, largest) = (x[t * hidden + h], x[best * hidden + h]);
        if value > largest || value.is_nan() && !largest.is_nan() {
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
            // A token of no weight is not looked at: 0 times NaN would be NaN.
            let weight = |t: &usize| kind.weight(t - start, end - start);
            let sum = (start..end)
                .filter(|t| weight(t) != 0.0)
                .map(|t| R::from_f64(weight(&t)) * x[t * hidden + h])
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
