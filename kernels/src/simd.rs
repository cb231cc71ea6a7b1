//! Instruction sets chosen at run time, and the few vector functions that kernels share.
//!
//! `multiversion!` compiles one body three times (AVX-512, AVX2 with FMA, portable) and calls the best that the
//! processor has. Bodies keep sums in [`LANES`] separate accumulators, so that the compiler may use whole registers
//! without changing the order of additions.

use std::sync::OnceLock;

/// Accumulators of a vectorised sum: one AVX-512 register of f32.
pub const LANES: usize = 16;

/// What the processor can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Avx512,
    Avx2,
    Portable,
}

impl Level {
    pub fn name(self) -> &'static str {
        match self {
            Level::Avx512 => "avx512",
            Level::Avx2 => "avx2",
            Level::Portable => "portable",
        }
    }
}

/// Names a level that is not to be exceeded: `avx2` or `portable`. For tests of the other bodies, and for giving one
/// machine the numerics class of another.
pub const LEVEL_VARIABLE: &str = "MOTLEY_SIMD";

/// The best instruction set of this processor that [`LEVEL_VARIABLE`] allows.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let limit = std::env::var(LEVEL_VARIABLE).ok();
        match (limit.as_deref(), detect()) {
            (Some("portable"), _) => Level::Portable,
            (Some("avx2"), Level::Avx512) => Level::Avx2,
            (_, best) => best,
        }
    })
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    // Each level is asked for exactly what the code of that level is compiled with.
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512bw");
    if avx2 && avx512 {
        Level::Avx512
    } else if avx2 {
        Level::Avx2
    } else {
        Level::Portable
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Portable
}

/// Compiles a function for each instruction set. In the body, `FMA` says whether fused multiply-add is fast.
#[macro_export]
macro_rules! multiversion {
    ($(#[$doc:meta])* $visibility:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$doc])*
        $visibility fn $name($($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            fn body<const FMA: bool>($($argument: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
                fn avx512($($argument: $type),*) $(-> $result)? {
                    body::<true>($($argument),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($argument: $type),*) $(-> $result)? {
                    body::<true>($($argument),*)
                }
                match $crate::simd::level() {
                    // SAFETY: the processor was asked for exactly these features.
                    $crate::simd::Level::Avx512 => return unsafe { avx512($($argument),*) },
                    // SAFETY: as above.
                    $crate::simd::Level::Avx2 => return unsafe { avx2($($argument),*) },
                    $crate::simd::Level::Portable => {}
                }
            }
            body::<false>($($argument),*)
        }
    };
}

/// a·b + c, rounded once where that is fast.
#[inline(always)]
pub fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Adds the lanes pairwise, always in the same order.
#[inline(always)]
pub fn add_lanes(lanes: &[f32; LANES]) -> f32 {
    let mut sum = *lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            sum[i] += sum[i + width];
        }
        width /= 2;
    }
    sum[0]
}

/// Σ xᵢ
#[inline(always)]
pub fn sum<const FMA: bool>(x: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += chunk[i];
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane += value;
    }
    add_lanes(&lanes)
}

/// Σ xᵢ·yᵢ
#[inline(always)]
pub fn dot<const FMA: bool>(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let count = x.len().min(y.len());
    let whole = count - count % LANES;
    for (a, b) in x[..whole].chunks_exact(LANES).zip(y[..whole].chunks_exact(LANES)) {
        for i in 0..LANES {
            lanes[i] = multiply_add::<FMA>(a[i], b[i], lanes[i]);
        }
    }
    for i in 0..count - whole {
        lanes[i] = multiply_add::<FMA>(x[whole + i], y[whole + i], lanes[i]);
    }
    add_lanes(&lanes)
}

/// y += scale·x
#[inline(always)]
pub fn add_scaled<const FMA: bool>(scale: f32, x: &[f32], y: &mut [f32]) {
    for (target, value) in y.iter_mut().zip(x) {
        *target = multiply_add::<FMA>(scale, *value, *target);
    }
}

/// exp(x) to 1.5 ulp for x ≤ 88; 0 below −87.3.
///
/// exp(x) = 2ⁿ·exp(r), n = round(x·log₂e), |r| ≤ ln2/2; exp(r) by the Chebyshev interpolant of degree 6.
#[inline(always)]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts: the first has few enough bits for n·LN2_HIGH to be exact.
    const LN2_HIGH: f32 = 0.693_145_75;
    const LN2_LOW: f32 = 1.428_606_8e-6;
    // Adding and taking away 1.5·2²³ rounds to the nearest integer, without a call where SSE 4.1 is missing.
    const ROUND: f32 = 12_582_912.0;
    const C: [f32; 7] = [1.0, 1.0, 0.5, 0.166_664_15, 0.041_666_35, 0.008_375_126, 0.001_394_110_8];
    let clamped = x.clamp(-87.3, 88.0);
    let n = multiply_add::<FMA>(clamped, LOG2_E, ROUND) - ROUND;
    let r = multiply_add::<FMA>(-n, LN2_HIGH, clamped);
    let r = multiply_add::<FMA>(-n, LN2_LOW, r);
    let mut p = C[6];
    for c in C[..6].iter().rev() {
        p = multiply_add::<FMA>(p, r, *c);
    }
    let power = f32::from_bits((((n as i32) + 127) << 23) as u32);
    let value = p * power;
    let value = if x < -87.3 { 0.0 } else { value };
    if x.is_nan() { x } else { value }
}

/// erf(x) to 3e-7 absolute: the quotient rounds five times.
///
/// x·P(x²)/Q(x²) for |x| < 4, where P and Q minimise the largest relative error (6.5e-8) on that interval; ±1 beyond.
/// Both are scaled so that their coefficients round well: by itself Q would begin with 1.
#[inline(always)]
pub fn erf<const FMA: bool>(x: f32) -> f32 {
    const P: [f32; 7] = [
        1.820_075_5,
        0.334_053_28,
        0.083_104_29,
        0.006_435_038,
        0.000_237_526_24,
        -3.132_694_5e-6,
        3.082_555_7e-8,
    ];
    const Q: [f32; 5] = [1.613, 0.833_710_3, 0.190_270_29, 0.024_123_896, 0.001_646_612_4];
    // Written so that NaN passes through.
    let bounded = if x > 4.0 { 4.0 } else { x };
    let bounded = if bounded < -4.0 { -4.0 } else { bounded };
    let square = bounded * bounded;
    let mut p = P[6];
    for c in P[..6].iter().rev() {
        p = multiply_add::<FMA>(p, square, *c);
    }
    let mut q = Q[4];
    for c in Q[..4].iter().rev() {
        q = multiply_add::<FMA>(q, square, *c);
    }
    let value = bounded * p / q;
    let value = if value > 1.0 { 1.0 } else { value };
    if value < -1.0 { -1.0 } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_and_erf_agree_with_libm() {
        for step in -90_000..=40_000 {
            let x = step as f32 * 1e-3;
            let wanted = f64::from(x).exp();
            let got = f64::from(exp::<true>(x));
            assert!((got - wanted).abs() <= 1.8e-7 * wanted + 1e-37, "exp({x}) = {got}, wanted {wanted}");
        }
        for step in -60_000..=60_000 {
            let x = step as f32 * 1e-4;
            let error = (f64::from(erf::<true>(x)) - libm::erf(f64::from(x))).abs();
            assert!(error <= 3e-7, "erf({x}) is off by {error:e}");
        }
        assert!(exp::<true>(f32::NAN).is_nan() && erf::<true>(f32::NAN).is_nan());
        assert_eq!(exp::<true>(f32::NEG_INFINITY), 0.0);
        assert!((erf::<true>(f32::INFINITY) - 1.0).abs() < 1e-7);
    }

    /// The tests of this crate again with each lesser instruction set: a level is chosen once a process.
    #[test]
    fn every_instruction_set_of_this_processor_passes_all_tests() {
        if let Ok(name) = std::env::var(LEVEL_VARIABLE) {
            assert_eq!(level().name(), name);
            return;
        }
        let lesser: &[Level] = match level() {
            Level::Avx512 => &[Level::Avx2, Level::Portable],
            Level::Avx2 => &[Level::Portable],
            Level::Portable => &[],
        };
        for level in lesser {
            let mut tests = std::process::Command::new(std::env::current_exe().unwrap());
            let output = tests.env(LEVEL_VARIABLE, level.name()).output().unwrap();
            let told = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{}:\n{told}", level.name());
            assert!(
                told.contains("every_instruction_set_of_this_processor_passes_all_tests ... ok"),
                "{told}"
            );
        }
    }
}
