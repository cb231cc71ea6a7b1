//! Shared by the kernels' tests: seeded values, one-line calls, and the two comparisons.

use crate::{Access, Arguments, Call, Entry, Slice, Workers};

/// Values in [−1, 1) from a 64-bit linear congruential generator (Knuth's constants).
pub fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32) / (1u32 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

/// Buffers of one call, in the order of the bindings.
pub struct Buffers {
    data: Vec<Vec<u32>>,
}

impl Buffers {
    pub fn new() -> Self {
        Buffers { data: vec![] }
    }

    pub fn f32(mut self, values: &[f32]) -> Self {
        self.data.push(values.iter().map(|v| v.to_bits()).collect());
        self
    }

    pub fn updated(self, values: &[f32]) -> Self {
        self.f32(values)
    }

    pub fn u32(mut self, values: &[u32]) -> Self {
        self.data.push(values.to_vec());
        self
    }

    /// A buffer to be written, full of NaN, so that a forgotten element shows.
    pub fn output(mut self, count: usize) -> Self {
        self.data.push(vec![f32::NAN.to_bits(); count]);
        self
    }

    /// Runs the entry with 1 and 3 threads, asserts the same bits, and returns every written buffer.
    pub fn run<A: Arguments>(self, entry: &Entry, args: A) -> Vec<Vec<f32>> {
        let one = Buffers { data: self.data.clone() }.run_with(entry, args, 1);
        let three = self.run_with(entry, args, 3);
        let bits = |all: &[Vec<f32>]| all.iter().flatten().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&one), bits(&three), "{} depends on the number of threads", entry.name);
        one
    }

    fn run_with<A: Arguments>(mut self, entry: &Entry, args: A, threads: usize) -> Vec<Vec<f32>> {
        assert_eq!(entry.bindings.len(), self.data.len(), "{}", entry.name);
        assert_eq!(entry.argument_bytes(), size_of::<A>());
        let workers = Workers::new(threads).unwrap();
        let slices = self.data.iter_mut().zip(entry.bindings).map(|(data, binding)| match binding.access {
            Access::Read => Slice::Read(bytemuck::cast_slice(data)),
            Access::Write | Access::ReadWrite => Slice::Write(bytemuck::cast_slice_mut(data)),
        });
        (entry.cpu)(&mut Call::new(bytemuck::bytes_of(&args), slices.collect(), &workers));
        let written = self.data.into_iter().zip(entry.bindings).filter(|(_, b)| b.access != Access::Read);
        written.map(|(data, _)| data.into_iter().map(f32::from_bits).collect()).collect()
    }
}

/// |got − wanted| ≤ bound·max(1, largest |wanted|)
#[track_caller]
pub fn assert_close(got: &[f32], wanted: &[f64], bound: f64) {
    assert_eq!(got.len(), wanted.len());
    let size = wanted.iter().fold(1.0f64, |a, b| a.max(b.abs()));
    for (i, (g, w)) in got.iter().zip(wanted).enumerate() {
        assert!(
            (f64::from(*g) - w).abs() <= bound * size,
            "element {i}: {g}, wanted {w}, bound {}",
            bound * size
        );
    }
}

/// Checks `gradient` = dᵀ·J against central differences of `forward` in f64, to 1e-6 relative.
#[track_caller]
pub fn assert_gradient(x: &[f64], d: &[f64], gradient: &[f64], forward: impl Fn(&[f64]) -> Vec<f64>) {
    let size = gradient.iter().fold(1e-3f64, |a, b| a.max(b.abs()));
    for i in 0..x.len() {
        let step = 1e-5 * x[i].abs().max(1.0);
        let at = |delta: f64| {
            let mut moved = x.to_vec();
            moved[i] += delta;
            forward(&moved).iter().zip(d).map(|(y, d)| y * d).sum::<f64>()
        };
        let difference = (8.0 * (at(step) - at(-step)) - (at(2.0 * step) - at(-2.0 * step))) / (12.0 * step);
        let error = (difference - gradient[i]).abs();
        assert!(error <= 1e-6 * size, "element {i}: {}, central difference {difference}", gradient[i]);
    }
}
