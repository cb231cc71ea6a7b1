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
            let scale = |v: &f32| if largest > 0.0 { v / largest } else { 0.0 };
            codes.extend(block.iter().map(|v| nearest(scale(v))));
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

/// Index of the nearest value of the map; of two equally near, the lower.
fn nearest(x: f32) -> u8 {
    let map = dynamic_map();
    let above = map.partition_point(|v| *v < x).min(255);
    let below = above.saturating_sub(1);
    if (x - map[below]).abs() <= (map[above] - x).abs() { below as u8 } else { above as u8 }
}
