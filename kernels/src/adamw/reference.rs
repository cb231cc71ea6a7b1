//! The specification of `adamw`.

use super::Args;
use crate::Real;

/// `state`: parameter, first moment, second moment.
pub fn step<R: Real>(gradient: &[R], state: &mut [Vec<R>; 3], args: &Args) {
    let c = |value: f32| R::from_f64(f64::from(value));
    for i in 0..gradient.len() {
        let g = gradient[i] * c(args.gradient_scale);
        let decayed = state[0][i] * c(args.decay);
        state[1][i] = c(args.beta1) * state[1][i] + (R::one() - c(args.beta1)) * g;
        state[2][i] = c(args.beta2) * state[2][i] + (R::one() - c(args.beta2)) * g * g;
        let denominator = state[2][i].sqrt() / c(args.correction2_root) + c(args.epsilon);
        state[0][i] = decayed - c(args.step_size) * state[1][i] / denominator;
    }
}
