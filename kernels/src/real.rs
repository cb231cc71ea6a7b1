//! The numbers of the specifications: f32 and f64.

use num_traits::Float;

/// A floating-point number of a specification.
pub trait Real: Float + std::iter::Sum + std::fmt::Debug {
    /// 2/√π ∫₀ˣ exp(−t²) dt
    fn erf(self) -> Self;

    /// A constant, rounded to this type.
    fn from_f64(value: f64) -> Self;
}

impl Real for f32 {
    fn erf(self) -> Self {
        libm::erff(self)
    }

    fn from_f64(value: f64) -> Self {
        value as f32
    }
}

impl Real for f64 {
    fn erf(self) -> Self {
        libm::erf(self)
    }

    fn from_f64(value: f64) -> Self {
        value
    }
}
