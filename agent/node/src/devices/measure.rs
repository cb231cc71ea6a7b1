//! How fast a device is: products, memory, products with an NF4 weight. Small cases grow until they take long enough to
//! be told from the cost of asking, so that a processor is done in a second and a large card is still busy.
//!
//! ```text
//! gemm        x [n, n] · W [n, n]ᵀ through the backend's own product, 2·n³ operations
//! nf4         the same with an NF4 weight
//! bandwidth   y += x: two reads and a write of each element
//! ```
//!
//! Values are random: cards clock higher on zeros.

use std::sync::Arc;
use std::time::Instant;

use motley_backends::{
    Backend, Buffer, Category, Direction, Epilogue, Launch, Linear, Precision, Result, SourceDtype, Weight,
    WeightFormat, WeightPart, WeightSource,
};
use motley_kernels::elementwise;
use serde::{Deserialize, Serialize};

/// What a device reaches, opened in one precision.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Rates {
    /// Floating-point operations a second.
    pub gemm: f64,
    pub nf4: f64,
    /// Bytes a second, read and written.
    pub bandwidth: f64,
}

/// A case that took so long is large enough: a thousand times the cost of a launch.
const SECONDS_ENOUGH: f64 = 0.02;

/// Measuring of one case goes on for so long; the best counts.
const SECONDS_A_CASE: f64 = 0.06;

/// Sides of the square products.
const SIDES: [usize; 5] = [512, 1024, 2048, 4096, 8192];

/// NF4 is quantized on the host, which takes longer than all the rest.
const SIDE_NF4_MAX: usize = 4096;

/// Elements of an added vector; the largest are far beyond every cache.
const COUNTS: [usize; 4] = [1 << 22, 1 << 24, 1 << 26, 1 << 28];

/// Measures what `backend` reaches.
///
/// # Errors
/// No memory for the smallest case, or a device that failed.
pub fn measure(backend: &Arc<dyn Backend>) -> Result<Rates> {
    let gemm = products(&**backend, WeightFormat::F32, SIDES[SIDES.len() - 1])?;
    let nf4 = products(&**backend, WeightFormat::Nf4 { double_quantization: true }, SIDE_NF4_MAX)?;
    Ok(Rates { gemm, nf4, bandwidth: bandwidth(&**backend)? })
}

/// As [`measure`], products alone.
///
/// # Errors
/// As [`measure`].
pub fn measure_products(backend: &Arc<dyn Backend>) -> Result<f64> {
    products(&**backend, WeightFormat::F32, SIDES[SIDES.len() - 1])
}

fn products(backend: &dyn Backend, format: WeightFormat, side_max: usize) -> Result<f64> {
    let mut best: f64 = 0.0;
    for side in SIDES.into_iter().filter(|side| *side <= side_max) {
        let case = match Square::new(backend, format, side) {
            Ok(case) => case,
            // What fits has been measured.
            Err(motley_backends::Error::OutOfMemory { .. }) if best > 0.0 => break,
            Err(error) => return Err(error),
        };
        let seconds = best_seconds(backend, || case.run(backend))?;
        best = best.max(2.0 * (side as f64).powi(3) / seconds);
        if seconds > SECONDS_ENOUGH {
            break;
        }
    }
    Ok(best)
}

/// x [side, side] and W [side, side].
struct Square {
    side: usize,
    input: Buffer,
    output: Buffer,
    weight: Weight,
}

impl Square {
    fn new(backend: &dyn Backend, format: WeightFormat, side: usize) -> Result<Square> {
        let values = random_bf16(side * side);
        let part = WeightPart { bytes: &values, shape: [side, side], dtype: SourceDtype::Bf16 };
        let weight = backend.prepare_weight(&WeightSource { parts: &[part], bias: None, format })?;
        let bytes = side * side * backend.info().precision.bytes();
        let input = backend.allocate_unfilled(bytes, Category::Activations)?;
        backend.upload(&activations(&values, backend.info().precision), input.all())?;
        let output = backend.allocate_unfilled(bytes, Category::Activations)?;
        Ok(Square { side, input, output, weight })
    }

    fn run(&self, backend: &dyn Backend) -> Result<()> {
        backend.linear(&Linear {
            input: self.input.all(),
            weight: &self.weight,
            output: self.output.all(),
            rows: self.side,
            epilogue: Epilogue::None,
            direction: Direction::Forward,
            accumulate: false,
        })
    }
}

fn bandwidth(backend: &dyn Backend) -> Result<f64> {
    let mut best: f64 = 0.0;
    for count in COUNTS {
        let bytes = count * backend.info().precision.bytes();
        let pair = backend
            .allocate(bytes, Category::Activations)
            .and_then(|x| Ok((x, backend.allocate(bytes, Category::Activations)?)));
        let (x, y) = match pair {
            Ok(pair) => pair,
            Err(motley_backends::Error::OutOfMemory { .. }) if best > 0.0 => break,
            Err(error) => return Err(error),
        };
        let args = elementwise::Args { count: count as u32, alpha: 0.5 };
        let add = || backend.launch(&Launch::new(&elementwise::ADD, &args, &[x.all(), y.all()]));
        let seconds = best_seconds(backend, add)?;
        // The newest, not the best: smaller ones lie in caches.
        best = 3.0 * bytes as f64 / seconds;
        if seconds > SECONDS_ENOUGH {
            break;
        }
    }
    Ok(best)
}

/// Seconds of one `call`: the best of several runs, after one that makes the device ready.
///
/// # Errors
/// The device failed.
pub fn best_seconds(backend: &dyn Backend, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut timed = |repeats: usize| -> Result<f64> {
        let began = Instant::now();
        for _ in 0..repeats {
            call()?;
        }
        backend.synchronize()?;
        Ok(began.elapsed().as_secs_f64() / repeats as f64)
    };
    timed(1)?;
    let first = timed(1)?;
    // So many at once that waiting for the device does not count.
    let repeats = ((SECONDS_ENOUGH / 2.0 / first.max(1e-7)) as usize).clamp(1, 256);
    let (mut best, began) = (first, Instant::now());
    while began.elapsed().as_secs_f64() < SECONDS_A_CASE {
        best = best.min(timed(repeats)?);
    }
    Ok(best)
}

/// Values of magnitude 2⁻⁵ to 2⁻⁴ and either sign, by xorshift (Marsaglia 2003), as bf16.
pub(crate) fn random_bf16(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = Vec::with_capacity(count * 2);
    for _ in 0..count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(((state >> 32) as u16 & 0x807f | 0x3d00).to_le_bytes());
    }
    bytes
}

/// bf16 values as a device keeps activations.
pub(crate) fn activations(bf16: &[u8], precision: Precision) -> Vec<u8> {
    match precision {
        Precision::Bf16 => bf16.to_vec(),
        // The upper half of an f32.
        Precision::F32 => {
            bf16.as_chunks::<2>().0.iter().flat_map(|[low, high]| [0, 0, *low, *high]).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use motley_backends::{DeviceRequest, open};

    #[test]
    fn a_processor_is_measured_and_a_small_limit_is_respected() {
        let request = |memory_limit| DeviceRequest {
            backend: "cpu".to_owned(),
            threads: Some(1),
            memory_limit,
            ..DeviceRequest::default()
        };
        let backend = open(&request(Some(64 << 20))).unwrap();
        let rates = measure(&backend).unwrap();
        assert!(rates.gemm > 1e8 && rates.nf4 > 1e8 && rates.bandwidth > 1e8, "{rates:?}");
        assert_eq!(backend.memory().live, 0);
        let none = open(&request(Some(1 << 10))).unwrap();
        assert!(matches!(measure(&none), Err(motley_backends::Error::OutOfMemory { .. })));
    }

    #[test]
    fn random_values_are_finite_and_the_same_in_both_precisions() {
        let bytes = random_bf16(1000);
        let wide = activations(&bytes, Precision::F32);
        let values: Vec<f32> = wide.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect();
        assert!(values.iter().all(|value| (0.03..0.13).contains(&value.abs())));
        assert_eq!(activations(&bytes, Precision::Bf16), bytes);
    }
}
