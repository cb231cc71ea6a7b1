//! A number that carries a bound of its rounding error: the specifications, evaluated in it, derive their own
//! tolerances.
//!
//! `value` is the exact result (f64), `error` bounds how far f32 arithmetic may come out from it, and `size` is the
//! sum of the magnitudes of all terms that were added up to it. An addition in f32 errs by half an ulp of the partial
//! sum, and in whatever order the terms are added, partial sums never pass `size`: so n terms cost at most n·u·size,
//! for one thread or a tree of them. Products keep the product of sizes, so that a·(b + c) may be computed as
//! a·b + a·c. Monotone functions are bounded by their values at the ends of the interval value ± error.
//!
//! Rounding alone would be u = 2⁻²⁴ for an operation. [`STEP`] is twice that, because devices split operations
//! further (exp(x) as exp2(x·log₂e), a quotient as a product with a reciprocal). Functions get [`FUNCTION`]: 4 ulp, the
//! worst of CUDA's table for f32 (erff 2, tanhf 2, expf 2, logf 1) and of WGSL's demands twice over.

use std::cell::Cell;
use std::cmp::Ordering;
use std::num::FpCategory;
use std::ops::{Add, Div, Mul, Neg, Rem, Sub};

use motley_kernels::Real;
use num_traits::{Float, Num, One, ToPrimitive, Zero};

/// Relative error of an operation.
pub const STEP: f64 = 1.0 / (1u64 << 23) as f64;
/// Relative error of a transcendental function, in units of its result.
pub const FUNCTION: f64 = 1.0 / (1u64 << 21) as f64;
/// Results below the normal numbers of f32 may be flushed to zero.
pub const FLUSHED: f64 = f32::MIN_POSITIVE as f64;
/// Half an ulp of bf16, relative: its significand has eight bits.
pub const BF16: f64 = 1.0 / 256.0;

thread_local! {
    static EXP: Cell<f64> = const { Cell::new(FUNCTION) };
}

/// Runs `work` where results of `exp` are rounded further, to `relative`: probabilities that a device keeps in bf16.
pub fn with_rounded_exp<T>(relative: f64, work: impl FnOnce() -> T) -> T {
    let before = EXP.replace(FUNCTION + relative);
    let result = work();
    EXP.set(before);
    result
}

#[derive(Debug, Clone, Copy)]
pub struct Bounded {
    pub value: f64,
    pub error: f64,
    size: f64,
}

impl Bounded {
    /// A value that every device gets the same bits of.
    pub fn exact(value: f32) -> Self {
        Self::within(f64::from(value), 0.0)
    }

    pub fn within(value: f64, error: f64) -> Self {
        Bounded { value, error, size: value.abs() }
    }

    /// The result of a function that is monotone where it is used, `relative` off its own value at most.
    fn monotone(self, function: impl Fn(f64) -> f64, relative: f64) -> Self {
        let value = function(self.value);
        let (low, high) = (function(self.value - self.error), function(self.value + self.error));
        let spread = [low, high].map(|end| if end.is_nan() { f64::INFINITY } else { (end - value).abs() });
        let spread = if self.error == 0.0 { 0.0 } else { spread[0].max(spread[1]) };
        Self::within(value, spread + relative * (value.abs() + spread) + FLUSHED)
    }

    /// A function that no specification uses yet: nothing is known of its error, and a case that meets it fails.
    fn unknown(self, value: f64) -> Self {
        Self::within(value, f64::INFINITY)
    }
}

/// Of values that every device gets exactly.
pub fn exact(values: &[f32]) -> Vec<Bounded> {
    values.iter().map(|v| Bounded::exact(*v)).collect()
}

impl Add for Bounded {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let size = self.size + other.size;
        // Adding an exact zero rounds nothing.
        let free = (other.size == 0.0 && other.error == 0.0) || (self.size == 0.0 && self.error == 0.0);
        let step = if free { 0.0 } else { STEP * (size + self.error + other.error) };
        Bounded { value: self.value + other.value, error: self.error + other.error + step, size }
    }
}

impl Neg for Bounded {
    type Output = Self;

    fn neg(self) -> Self {
        Bounded { value: -self.value, ..self }
    }
}

impl Sub for Bounded {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl Mul for Bounded {
    type Output = Self;

    fn mul(self, other: Self) -> Self {
        let value = self.value * other.value;
        let carried =
            self.value.abs() * other.error + other.value.abs() * self.error + self.error * other.error;
        let error = carried + STEP * (value.abs() + carried) + FLUSHED;
        Bounded { value, error, size: self.size * other.size }
    }
}

impl Div for Bounded {
    type Output = Self;

    fn div(self, other: Self) -> Self {
        let value = self.value / other.value;
        let least = other.value.abs() - other.error;
        // What is divided by something beyond all numbers is 0, whatever that was exactly.
        let carried = if (self.error == 0.0 && other.error == 0.0) || other.value.is_infinite() {
            0.0
        } else if least > 0.0 {
            (self.error + value.abs() * other.error) / least
        } else {
            f64::INFINITY
        };
        let error = carried + STEP * (value.abs() + carried) + FLUSHED;
        Bounded { value, error, size: self.size / other.value.abs() }
    }
}

impl Rem for Bounded {
    type Output = Self;

    fn rem(self, other: Self) -> Self {
        self.unknown(self.value % other.value)
    }
}

impl PartialEq for Bounded {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl PartialOrd for Bounded {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.value.partial_cmp(&other.value)
    }
}

impl std::iter::Sum for Bounded {
    fn sum<I: Iterator<Item = Self>>(terms: I) -> Self {
        terms.fold(Self::zero(), |sum, term| sum + term)
    }
}

impl Zero for Bounded {
    fn zero() -> Self {
        Self::within(0.0, 0.0)
    }

    fn is_zero(&self) -> bool {
        self.value == 0.0
    }
}

impl One for Bounded {
    fn one() -> Self {
        Self::within(1.0, 0.0)
    }
}

impl Real for Bounded {
    fn erf(self) -> Self {
        self.monotone(<f64 as Real>::erf, FUNCTION)
    }

    fn from_f64(value: f64) -> Self {
        Self::within(value, if f64::from(value as f32) == value { 0.0 } else { STEP * value.abs() })
    }
}

impl ToPrimitive for Bounded {
    fn to_i64(&self) -> Option<i64> {
        self.value.to_i64()
    }

    fn to_u64(&self) -> Option<u64> {
        self.value.to_u64()
    }

    fn to_f64(&self) -> Option<f64> {
        Some(self.value)
    }
}

impl num_traits::NumCast for Bounded {
    fn from<T: ToPrimitive>(number: T) -> Option<Self> {
        number.to_f64().map(Self::from_f64)
    }
}

impl Num for Bounded {
    type FromStrRadixErr = <f64 as Num>::FromStrRadixErr;

    fn from_str_radix(text: &str, radix: u32) -> Result<Self, Self::FromStrRadixErr> {
        f64::from_str_radix(text, radix).map(Self::from_f64)
    }
}

macro_rules! constants {
    ($($name:ident = $value:expr),* $(,)?) => { $(fn $name() -> Self { Self::within($value, 0.0) })* };
}

macro_rules! questions {
    ($($name:ident -> $type:ty),* $(,)?) => { $(fn $name(self) -> $type { self.value.$name() })* };
}

macro_rules! unknown {
    ($($name:ident),* $(,)?) => { $(fn $name(self) -> Self { self.unknown(self.value.$name()) })* };
}

impl Float for Bounded {
    constants! {
        nan = f64::NAN, infinity = f64::INFINITY, neg_infinity = f64::NEG_INFINITY, neg_zero = -0.0,
        min_value = f64::from(f32::MIN), min_positive_value = f64::from(f32::MIN_POSITIVE),
        max_value = f64::from(f32::MAX),
    }

    questions! {
        is_nan -> bool, is_infinite -> bool, is_finite -> bool, is_normal -> bool, classify -> FpCategory,
        is_sign_positive -> bool, is_sign_negative -> bool,
    }

    unknown! {
        floor, ceil, round, trunc, fract, signum, cbrt, tan, asin, acos, atan, exp_m1, ln_1p, sinh, cosh, asinh,
        acosh, atanh, exp2, log2, log10,
    }

    fn abs(self) -> Self {
        Bounded { value: self.value.abs(), ..self }
    }

    fn mul_add(self, factor: Self, term: Self) -> Self {
        self * factor + term
    }

    fn recip(self) -> Self {
        Self::one() / self
    }

    fn sqrt(self) -> Self {
        // Not the maximum of both, which of a number and NaN is the number.
        self.monotone(|x| if x < 0.0 { 0.0 } else { x.sqrt() }, STEP)
    }

    fn exp(self) -> Self {
        self.monotone(f64::exp, EXP.get())
    }

    fn ln(self) -> Self {
        let result = self.monotone(f64::ln, FUNCTION);
        // Near 1 the result is small and a device's logarithm errs by ulps of 1, not of the result.
        Bounded { error: result.error + FUNCTION, ..result }
    }

    fn tanh(self) -> Self {
        self.monotone(f64::tanh, FUNCTION)
    }

    fn sin(self) -> Self {
        Self::within(self.value.sin(), self.error + FUNCTION)
    }

    fn cos(self) -> Self {
        Self::within(self.value.cos(), self.error + FUNCTION)
    }

    fn sin_cos(self) -> (Self, Self) {
        (self.sin(), self.cos())
    }

    fn max(self, other: Self) -> Self {
        Self::within(self.value.max(other.value), self.error.max(other.error))
    }

    fn min(self, other: Self) -> Self {
        Self::within(self.value.min(other.value), self.error.max(other.error))
    }

    fn powi(self, exponent: i32) -> Self {
        (1..exponent).fold(self, |power, _| power * self)
    }

    fn powf(self, exponent: Self) -> Self {
        self.unknown(self.value.powf(exponent.value))
    }

    fn log(self, base: Self) -> Self {
        self.unknown(self.value.log(base.value))
    }

    fn abs_sub(self, other: Self) -> Self {
        (self - other).max(Self::zero())
    }

    fn hypot(self, other: Self) -> Self {
        (self * self + other * other).sqrt()
    }

    fn atan2(self, other: Self) -> Self {
        self.unknown(self.value.atan2(other.value))
    }

    fn integer_decode(self) -> (u64, i16, i8) {
        self.value.integer_decode()
    }
}

#[test]
fn the_bound_of_a_sum_holds_in_any_order_and_is_not_much_wider() {
    let terms: Vec<f32> = (0..1000u32).map(|i| ((i * 7919 % 1013) as f32 - 500.0) / 100.0).collect();
    let bounded = exact(&terms).into_iter().sum::<Bounded>();
    for step in [1, 3, 7] {
        let sum = (0..1000).map(|i| terms[i * step % 1000]).sum::<f32>();
        assert!((f64::from(sum) - bounded.value).abs() <= bounded.error);
    }
    assert!(bounded.error < 1000.0 * STEP * 2500.0, "{bounded:?}");
}
