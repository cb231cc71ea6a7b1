//! Double quantization: the block scales of NF4 in eight bits.

use std::sync::OnceLock;

/// Scales that share one nested scale.
pub const NESTED_BLOCK: usize = 256;

/// Quantized scales.
#[derive(Debug, Clone, PartialEq)]
pub struct DoubleQuantized {
    /// Indices into [`dynamic_map`], one a block of values.
    pub codes: Vec<u8>,
    /// One for each [`NESTED_BLOCK`] codes.
    pub nested_absmax: Vec<f32>,
    /// Mean of the scales.
    pub offset: f32,
}

/// The signed dynamic map: for each decade from 1e-6 to 1, midpoints of 2ⁱ equal parts of [0.1, 1], both signs, and
/// 0 and 1; ascending.
pub fn dynamic_map() -> &'static [f32; 256] {
    static MAP: OnceLock<[f32; 256]> = OnceLock::new();
    MAP.get_or_init(|| {
        let mut map = [0.0; 256];
        let mut next = 1;
        map[0] = 1.0;
        for i in 0..7 {
            let parts = 1 << i;
            let boundary = |k: usize| linspace(k, parts);
            let decade = 10f64.powi(i - 6) as f32;
            for k in 0..parts {
                let value = decade * ((boundary(k) + boundary(k + 1)) / 2.0);
                map[next] = value;
                map[next + 1] = -value;
                next += 2;
            }
        }
        // One place is left at 0.
        map.sort_by(f32::total_cmp);
        map
    })
}

/// Element `k` of `parts` equal steps from 0.1 to 1 in f32: counted from the nearer end and rounded once, as PyTorch
/// does.
fn linspace(k: usize, parts: usize) -> f32 {
    let step = (1.0f32 - 0.1f32) / parts as f32;
    let total = parts + 1;
    if k < total / 2 { step.mul_add(k as f32, 0.1) } else { (-step).mul_add((total - k - 1) as f32, 1.0) }
}

impl DoubleQuantized {
    /// Quantizes scales; the offset is their mean.
    pub fn new(absmax: &[f32]) -> Self {
        let mean = absmax.iter().map(|v| f64::from(*v)).sum::<f64>() / absmax.len().max(1) as f64;
        Self::with_offset(absmax, mean as f32)
    }

    /// Quantizes scales with a given offset.
    pub fn with_offset(absmax: &[f32], offset: f32) -> Self {
        let centred: Vec<f32> = absmax.iter().map(|v| v - offset).collect();
        let (mut codes, mut nested_absmax) = (vec![], vec![]);
        for block in centred.chunks(NESTED_BLOCK) {
            let largest = block.iter().fold(0.0f32, |a, b| a.max(b.abs()));
            let reciprocal = 1.0 / largest;
            codes.extend(block.iter().map(|v| if largest > 0.0 { code(v * reciprocal) } else { 0 }));
            nested_absmax.push(largest);
        }
        DoubleQuantized { codes, nested_absmax, offset }
    }

    /// The scales that the codes stand for.
    pub fn absmax(&self) -> Vec<f32> {
        let map = dynamic_map();
        (0..self.codes.len()).map(|block| self.value(block, map)).collect()
    }

    /// Scale of one block.
    pub fn value(&self, block: usize, map: &[f32; 256]) -> f32 {
        map[usize::from(self.codes[block])] * self.nested_absmax[block / NESTED_BLOCK] + self.offset
    }
}

/// Steps of the grid on [−1, 1] that a scaled value is rounded to before its code is chosen.
const GRID: usize = 65536;

/// Code of a scaled value: the nearest of the map to the nearest point of the grid; of two equally near, the lower.
/// The grid, hence now and then the neighbour of the nearest, is how bitsandbytes' CPU kernel chooses; its bits are
/// the reference.
fn code(scaled: f32) -> u8 {
    static CODES: OnceLock<Box<[u8]>> = OnceLock::new();
    let codes = CODES.get_or_init(|| {
        let map = dynamic_map();
        let midpoints: Vec<f32> = map.windows(2).map(|pair| 0.5 * (pair[0] + pair[1])).collect();
        let point = |i: usize| -1.0 + (2.0 * i as f32) / (GRID - 1) as f32;
        (0..GRID).map(|i| midpoints.partition_point(|m| *m < point(i)) as u8).collect()
    });
    let index = (scaled.clamp(-1.0, 1.0) + 1.0) * 0.5 * (GRID - 1) as f32 + 0.5;
    codes[index as usize]
}
