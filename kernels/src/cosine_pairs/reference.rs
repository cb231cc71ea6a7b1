//! The specification of `cosine_pairs`.

use crate::Real;

fn length<R: Real>(x: &[R]) -> R {
    let (length, least) = (x.iter().map(|v| *v * *v).sum::<R>().sqrt(), R::from_f64(1e-12));
    // Not the maximum of both, which of a number and NaN is the number.
    if length < least { least } else { length }
}

/// Returns the cosines.
pub fn forward<R: Real>(a: &[R], b: &[R], width: usize) -> Vec<R> {
    let cosine =
        |(a, b): (&[R], &[R])| a.iter().zip(b).map(|(x, y)| *x * *y).sum::<R>() / (length(a) * length(b));
    a.chunks(width).zip(b.chunks(width)).map(cosine).collect()
}

/// Returns da and db.
pub fn backward<R: Real>(d: &[R], a: &[R], b: &[R], width: usize) -> (Vec<R>, Vec<R>) {
    let cosines = forward(a, b, width);
    let (mut da, mut db) = (vec![], vec![]);
    for (r, (a, b)) in a.chunks(width).zip(b.chunks(width)).enumerate() {
        let (la, lb) = (length(a), length(b));
        for i in 0..width {
            da.push(d[r] * (b[i] / (la * lb) - cosines[r] * a[i] / (la * la)));
            db.push(d[r] * (a[i] / (la * lb) - cosines[r] * b[i] / (lb * lb)));
        }
    }
    (da, db)
}
