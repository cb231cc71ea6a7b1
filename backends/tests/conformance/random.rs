//! Seeded values and shapes.

/// Knuth's 64-bit linear congruential generator; a case names its seed, so that it can be had again.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 40
    }

    /// Values in [−1, 1).
    pub fn numbers(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next() as f32 / (1u32 << 23) as f32 - 1.0).collect()
    }

    /// From 0 up to and without `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.next() as usize % end
    }

    /// From 1 to `largest`.
    pub fn size(&mut self, largest: usize) -> usize {
        1 + self.below(largest)
    }

    pub fn indices(&mut self, count: usize, end: usize) -> Vec<u32> {
        (0..count).map(|_| self.below(end) as u32).collect()
    }

    /// Cumulative lengths of `texts` texts of 0 to `longest` tokens.
    pub fn lengths(&mut self, texts: usize, longest: usize) -> Vec<u32> {
        let mut lengths = vec![0];
        for _ in 0..texts {
            lengths.push(lengths[lengths.len() - 1] + self.below(longest + 1) as u32);
        }
        lengths
    }
}

pub fn scaled(values: Vec<f32>, factor: f32) -> Vec<f32> {
    values.into_iter().map(|v| v * factor).collect()
}
