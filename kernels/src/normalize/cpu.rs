//! The fast path of `normalize`. Rows are few (one a text), so one thread does it.

use super::{Args, LENGTH_MIN};
use crate::simd::{dot, multiply_add};
use crate::{Call, multiversion};

pub(super) fn forward(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let (x, y, length) = (call.read::<f32>(), call.write::<f32>(), call.write::<f32>());
    let width = args.width as usize;
    for row in 0..args.rows as usize {
        let span = row * width..(row + 1) * width;
        length[row] = forward_row(&x[span.clone()], &mut y[span]);
    }
}

pub(super) fn backward(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let (dy, y, length) = (call.read::<f32>(), call.read::<f32>(), call.read::<f32>());
    let dx = call.write::<f32>();
    let width = args.width as usize;
    for row in 0..args.rows as usize {
        let span = row * width..(row + 1) * width;
        backward_row(&dy[span.clone()], &y[span.clone()], length[row], &mut dx[span]);
    }
}

multiversion! {
    fn forward_row(x: &[f32], y: &mut [f32]) -> f32 {
        let length = dot::<FMA>(x, x).sqrt();
        let length = if length < LENGTH_MIN { LENGTH_MIN } else { length };
        for i in 0..y.len() {
            y[i] = x[i] / length;
        }
        length
    }
}

multiversion! {
    fn backward_row(dy: &[f32], y: &[f32], length: f32, dx: &mut [f32]) {
        let along = dot::<FMA>(dy, y);
        for i in 0..dx.len() {
            dx[i] = multiply_add::<FMA>(-y[i], along, dy[i]) / length;
        }
    }
}
