//! The CPU path of `sum_squares`: in f64, so that the order of additions shows in no bit of the norm that matters.

use super::{Args, PIECE};
use crate::Call;

pub(super) fn forward(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let x = &call.read::<f32>()[..args.count as usize];
    let squares = |piece: &[f32]| piece.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>();
    call.write::<f32>()[0] = x.chunks(PIECE).map(squares).sum::<f64>() as f32;
}
