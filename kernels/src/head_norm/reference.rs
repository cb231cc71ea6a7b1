//! The specification of `head_norm`.

use super::Args;
use crate::Real;
use crate::rms_norm;

/// `x` [tokens, heads of q, k and v]; `gammas` of q and of k. Returns y and the reciprocal roots
/// [tokens, heads + kv_heads].
pub fn forward<R: Real>(x: &[R], gammas: [&[R]; 2], args: &Args) -> (Vec<R>, Vec<R>) {
    let (mut y, mut roots) = (x.to_vec(), Vec::new());
    for (place, gamma) in heads(gammas, args) {
        let one = rms_norm::reference::forward(&x[place.clone()], gamma, f64::from(args.epsilon));
        y[place].copy_from_slice(&one.y);
        roots.extend(one.reciprocal_root);
    }
    (y, roots)
}

/// Returns dx.
pub fn backward<R: Real>(dy: &[R], x: &[R], gammas: [&[R]; 2], args: &Args) -> Vec<R> {
    let mut dx = dy.to_vec();
    for (place, gamma) in heads(gammas, args) {
        let x = &x[place.clone()];
        let saved = rms_norm::reference::forward(x, gamma, f64::from(args.epsilon));
        let one = rms_norm::reference::backward(&dy[place.clone()], x, gamma, &saved.reciprocal_root);
        dx[place].copy_from_slice(&one);
    }
    dx
}

/// Each normalised head with its factors, token after token.
fn heads<'a, R>(
    gammas: [&'a [R]; 2],
    args: &Args,
) -> impl Iterator<Item = (std::ops::Range<usize>, &'a [R])> {
    let (args, dim) = (*args, args.head_dim as usize);
    (0..args.tokens * args.normalised()).map(move |index| {
        let (token, head) = (index / args.normalised(), index % args.normalised());
        let start = (token * args.all() + head) as usize * dim;
        (start..start + dim, gammas[usize::from(head >= args.heads)])
    })
}
