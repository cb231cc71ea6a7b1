//! The specification of `normalize`.

use super::LENGTH_MIN;
use crate::Real;

/// Returns y and the lengths.
pub fn forward<R: Real>(x: &[R], width: usize) -> (Vec<R>, Vec<R>) {
    let (mut y, mut lengths) = (vec![], vec![]);
    for row in x.chunks(width) {
        let (length, least) =
            (row.iter().map(|v| *v * *v).sum::<R>().sqrt(), R::from_f64(f64::from(LENGTH_MIN)));
        // Not the maximum of both, which of a number and NaN is the number.
        let length = if length < least { least } else { length };
        y.extend(row.iter().map(|v| *v / length));
        lengths.push(length);
    }
    (y, lengths)
}

/// Returns dx.
pub fn backward<R: Real>(dy: &[R], y: &[R], lengths: &[R], width: usize) -> Vec<R> {
    let mut dx = vec![];
    for (r, (dy, y)) in dy.chunks(width).zip(y.chunks(width)).enumerate() {
        let along = dy.iter().zip(y).map(|(a, b)| *a * *b).sum::<R>();
        dx.extend(dy.iter().zip(y).map(|(dy, y)| (*dy - *y * along) / lengths[r]));
    }
    dx
}
