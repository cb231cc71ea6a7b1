//! The fast path of `elementwise`.

use super::Args;
use crate::simd::add_scaled;
use crate::{Call, multiversion};

const ELEMENTS_A_TASK: usize = 32_768;

pub(super) fn add(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let x = call.read::<f32>();
    let y = &mut call.write::<f32>()[..args.count as usize];
    call.workers.pieces(y, ELEMENTS_A_TASK, |task, y| {
        add_piece(args.alpha, &x[task * ELEMENTS_A_TASK..][..y.len()], y);
    });
}

pub(super) fn fill(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    call.write::<f32>()[..args.count as usize].fill(args.alpha);
}

multiversion! {
    fn add_piece(alpha: f32, x: &[f32], y: &mut [f32]) {
        add_scaled::<FMA>(alpha, x, y);
    }
}
