//! The fast path of `cosine_pairs`. Rows are few (one a pair), so one thread does it.

use super::Args;
use crate::simd::dot;
use crate::{Call, multiversion};

pub(super) fn forward(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let (a, b, out) = (call.read::<f32>(), call.read::<f32>(), call.write::<f32>());
    let width = args.width as usize;
    for row in 0..args.rows as usize {
        let span = row * width..(row + 1) * width;
        let [ab, la, lb] = products(&a[span.clone()], &b[span]);
        out[row] = ab / (la * lb);
    }
}

pub(super) fn backward(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let (d, a, b) = (call.read::<f32>(), call.read::<f32>(), call.read::<f32>());
    let (da, db) = (call.write::<f32>(), call.write::<f32>());
    let width = args.width as usize;
    for row in 0..args.rows as usize {
        let span = row * width..(row + 1) * width;
        let (a, b) = (&a[span.clone()], &b[span.clone()]);
        let [ab, la, lb] = products(a, b);
        let cosine = ab / (la * lb);
        let (cross, own_a, own_b) =
            (d[row] / (la * lb), d[row] * cosine / (la * la), d[row] * cosine / (lb * lb));
        combine((a, b), (cross, own_a), &mut da[span.clone()]);
        combine((b, a), (cross, own_b), &mut db[span]);
    }
}

multiversion! {
    /// a·b and both lengths.
    fn products(a: &[f32], b: &[f32]) -> [f32; 3] {
        let length = |x: &[f32]| {
            let length = dot::<FMA>(x, x).sqrt();
            if length < 1e-12 { 1e-12 } else { length }
        };
        [dot::<FMA>(a, b), length(a), length(b)]
    }
}

multiversion! {
    fn combine(vectors: (&[f32], &[f32]), factors: (f32, f32), out: &mut [f32]) {
        let _ = FMA;
        for i in 0..out.len() {
            out[i] = factors.0 * vectors.1[i] - factors.1 * vectors.0[i];
        }
    }
}
