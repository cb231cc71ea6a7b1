//! The fast path of `adamw`.

use super::Args;
use crate::simd::multiply_add;
use crate::{Call, multiversion};

const ELEMENTS_A_TASK: usize = 16_384;

pub(super) fn step(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let count = args.count as usize;
    let gradient = &call.read::<f32>()[..count];
    let parameter = &mut call.write::<f32>()[..count];
    let (first, second) = (&mut call.write::<f32>()[..count], &mut call.write::<f32>()[..count]);
    let mut moments: Vec<(&mut [f32], &mut [f32])> =
        first.chunks_mut(ELEMENTS_A_TASK).zip(second.chunks_mut(ELEMENTS_A_TASK)).collect();
    if count == 0 {
        return;
    }
    call.workers.pieces_of_two(
        (parameter, ELEMENTS_A_TASK),
        (&mut moments, 1),
        |task, parameter, moments| {
            let gradient = &gradient[task * ELEMENTS_A_TASK..][..parameter.len()];
            let (first, second) = &mut moments[0];
            update(gradient, parameter, (first, second), &args);
        },
    );
}

multiversion! {
    fn update(gradient: &[f32], parameter: &mut [f32], moments: (&mut [f32], &mut [f32]), args: &Args) {
        let (first, second) = moments;
        for i in 0..parameter.len() {
            let g = gradient[i] * args.gradient_scale;
            let m = multiply_add::<FMA>(args.beta1, first[i], (1.0 - args.beta1) * g);
            let v = multiply_add::<FMA>(args.beta2, second[i], (1.0 - args.beta2) * g * g);
            let denominator = v.sqrt() / args.correction2_root + args.epsilon;
            first[i] = m;
            second[i] = v;
            parameter[i] = parameter[i] * args.decay - args.step_size * m / denominator;
        }
    }
}
