//! The fast path of `gelu`.

use super::{Args, Kind};
use crate::simd::{erf, exp, multiply_add};
use crate::{Call, multiversion};

const ELEMENTS_A_TASK: usize = 16_384;
const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

pub(super) fn forward(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let x = call.read::<f32>();
    let y = &mut call.write::<f32>()[..args.count as usize];
    call.workers.pieces(y, ELEMENTS_A_TASK, |task, y| {
        y.copy_from_slice(&x[task * ELEMENTS_A_TASK..][..y.len()]);
        in_place(y, args.kind);
    });
}

pub(super) fn backward(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let (dy, x) = (call.read::<f32>(), call.read::<f32>());
    let dx = &mut call.write::<f32>()[..args.count as usize];
    call.workers.pieces(dx, ELEMENTS_A_TASK, |task, dx| {
        let start = task * ELEMENTS_A_TASK;
        let (dy, x) = (&dy[start..start + dx.len()], &x[start..start + dx.len()]);
        match args.kind {
            k if k == Kind::Exact as u32 => exact_slope(dy, x, dx),
            k if k == Kind::Tanh as u32 => tanh_slope(dy, x, dx),
            _ => relu_slope(dy, x, dx),
        }
    });
}

/// Applies the activation to `x`; also the epilogue of products.
pub fn in_place(x: &mut [f32], kind: u32) {
    match kind {
        k if k == Kind::Exact as u32 => exact(x),
        k if k == Kind::Tanh as u32 => tanh(x),
        _ => relu(x),
    }
}

multiversion! {
    fn exact(x: &mut [f32]) {
        for v in x {
            let half = 0.5 * *v;
            *v = multiply_add::<FMA>(half, erf::<FMA>(*v * std::f32::consts::FRAC_1_SQRT_2), half);
        }
    }
}

/// tanh(u) = 1 − 2/(exp(2u) + 1)
#[inline(always)]
fn tanh_of<const FMA: bool>(u: f32) -> f32 {
    let bounded = u.clamp(-20.0, 20.0);
    let value = 1.0 - 2.0 / (exp::<FMA>(2.0 * bounded) + 1.0);
    if u.is_nan() { u } else { value }
}

multiversion! {
    fn tanh(x: &mut [f32]) {
        for v in x {
            let u = SQRT_2_OVER_PI * multiply_add::<FMA>(CUBIC * *v * *v, *v, *v);
            let half = 0.5 * *v;
            *v = multiply_add::<FMA>(half, tanh_of::<FMA>(u), half);
        }
    }
}

multiversion! {
    fn relu(x: &mut [f32]) {
        let _ = FMA;
        for v in x {
            *v = if *v < 0.0 { 0.0 } else { *v };
        }
    }
}

multiversion! {
    fn exact_slope(dy: &[f32], x: &[f32], dx: &mut [f32]) {
        const DENSITY: f32 = 0.398_942_3;
        for i in 0..dx.len() {
            let v = x[i];
            let share = multiply_add::<FMA>(0.5, erf::<FMA>(v * std::f32::consts::FRAC_1_SQRT_2), 0.5);
            // Beyond 20 the density is zero; x² would overflow.
            let bounded = v.clamp(-20.0, 20.0);
            let density = DENSITY * exp::<FMA>(-0.5 * bounded * bounded);
            dx[i] = dy[i] * multiply_add::<FMA>(bounded, density, share);
        }
    }
}

multiversion! {
    fn tanh_slope(dy: &[f32], x: &[f32], dx: &mut [f32]) {
        for i in 0..dx.len() {
            let v = x[i].clamp(-1e4, 1e4);
            let t = tanh_of::<FMA>(SQRT_2_OVER_PI * multiply_add::<FMA>(CUBIC * v * v, v, v));
            let inner = SQRT_2_OVER_PI * multiply_add::<FMA>(3.0 * CUBIC * v, v, 1.0);
            dx[i] = dy[i] * (0.5 * (1.0 + t) + 0.5 * v * (1.0 - t * t) * inner);
        }
    }
}

multiversion! {
    fn relu_slope(dy: &[f32], x: &[f32], dx: &mut [f32]) {
        let _ = FMA;
        for i in 0..dx.len() {
            dx[i] = if x[i] > 0.0 { dy[i] } else { 0.0 };
        }
    }
}
