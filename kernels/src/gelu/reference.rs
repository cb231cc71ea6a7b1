//! The specification of `gelu`.

use super::Kind;
use crate::Real;

fn half<R: Real>() -> R {
    R::from_f64(0.5)
}

fn tanh_argument<R: Real>(x: R) -> R {
    R::from_f64((2.0 / std::f64::consts::PI).sqrt()) * (x + R::from_f64(0.044715) * x * x * x)
}

pub fn forward<R: Real>(x: &[R], kind: Kind) -> Vec<R> {
    let one = |x: R| match kind {
        Kind::Exact => {
            half::<R>() * x * (R::one() + (x * R::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erf())
        }
        Kind::Tanh => half::<R>() * x * (R::one() + tanh_argument(x).tanh()),
        // Not the maximum of both, which of a number and NaN is the number.
        Kind::Relu if x < R::zero() => R::zero(),
        Kind::Relu => x,
    };
    x.iter().map(|x| one(*x)).collect()
}

/// Returns dx.
pub fn backward<R: Real>(dy: &[R], x: &[R], kind: Kind) -> Vec<R> {
    let slope = |x: R| match kind {
        Kind::Exact => {
            let share = half::<R>() * (R::one() + (x * R::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erf());
            let density =
                (-half::<R>() * x * x).exp() * R::from_f64(1.0 / (2.0 * std::f64::consts::PI).sqrt());
            share + if density.is_zero() { R::zero() } else { x * density }
        }
        Kind::Tanh => {
            let t = tanh_argument(x).tanh();
            let inner = R::from_f64((2.0 / std::f64::consts::PI).sqrt())
                * (R::one() + R::from_f64(3.0 * 0.044715) * x * x);
            let rest = R::one() - t * t;
            half::<R>() * (R::one() + t)
                + if rest.is_zero() { R::zero() } else { half::<R>() * x * rest * inner }
        }
        Kind::Relu => {
            if x > R::zero() {
                R::one()
            } else {
                R::zero()
            }
        }
    };
    dy.iter().zip(x).map(|(dy, x)| *dy * slope(*x)).collect()
}
