//! Counter-based random numbers: the n-th number of a stream without the n−1 before it.
//!
//! SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) as a function
//! of (seed, stream, counter). It chooses examples and orders; dropout and initial weights have Philox in `kernels`.

/// The numbers of one (seed, stream).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draws {
    key: u64,
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Draws {
    pub fn new(seed: u64, stream: u64) -> Self {
        // Two rounds, so that neighbouring seeds and streams share nothing visible.
        Draws { key: mix(mix(seed.wrapping_add(GOLDEN)).wrapping_add(stream.wrapping_mul(GOLDEN))) }
    }

    /// 64 uniform bits.
    pub fn bits(&self, counter: u64) -> u64 {
        mix(self.key.wrapping_add(counter.wrapping_add(1).wrapping_mul(GOLDEN)))
    }

    /// Uniform below `bound` by multiply and shift; its bias is below bound/2⁶⁴.
    ///
    /// # Panics
    /// When `bound` is 0.
    pub fn below(&self, counter: u64, bound: u64) -> u64 {
        assert!(bound > 0, "nothing to draw from");
        ((u128::from(self.bits(counter)) * u128::from(bound)) >> 64) as u64
    }

    /// Uniform in [0, 1).
    pub fn unit(&self, counter: u64) -> f64 {
        (self.bits(counter) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A permutation of 0..count (Fisher and Yates).
    pub fn permutation(&self, count: u32) -> Vec<u32> {
        let mut order: Vec<u32> = (0..count).collect();
        for last in (1..order.len()).rev() {
            let other = self.below(last as u64, last as u64 + 1) as usize;
            order.swap(last, other);
        }
        order
    }
}

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixing_is_splitmix64() {
        // First outputs of the reference generator with seed 1234567.
        let expected = [6457827717110365317u64, 3203168211198807973, 9817491932198370423];
        let got: Vec<u64> =
            (1..=3u64).map(|n| mix(1234567u64.wrapping_add(n.wrapping_mul(GOLDEN)))).collect();
        assert_eq!(got, expected);
    }

    #[test]
    fn draws_are_uniform_and_depend_on_seed_and_stream() {
        let mut counts = [0u32; 7];
        let draws = Draws::new(42, 3);
        for counter in 0..70_000 {
            counts[draws.below(counter, 7) as usize] += 1;
        }
        // Standard deviation 93; five of them.
        assert!(counts.iter().all(|&count| count.abs_diff(10_000) < 470), "{counts:?}");
        assert_ne!(draws.bits(0), Draws::new(43, 3).bits(0));
        assert_ne!(draws.bits(0), Draws::new(42, 4).bits(0));
        assert!((0..1000).all(|counter| (0.0..1.0).contains(&draws.unit(counter))));
    }

    #[test]
    fn permutations_hold_every_index_once_and_differ_by_stream() {
        for count in [0, 1, 2, 3, 1000] {
            let mut order = Draws::new(7, 0).permutation(count);
            order.sort_unstable();
            assert_eq!(order, (0..count).collect::<Vec<_>>());
        }
        assert_ne!(Draws::new(7, 0).permutation(50), Draws::new(7, 1).permutation(50));
        assert_eq!(Draws::new(7, 1).permutation(50), Draws::new(7, 1).permutation(50));
        // Each of the six orders of three comes up about equally often.
        let mut seen = std::collections::BTreeMap::new();
        for stream in 0..6000 {
            *seen.entry(Draws::new(1, stream).permutation(3)).or_insert(0u32) += 1;
        }
        assert!(seen.len() == 6 && seen.values().all(|&count| count.abs_diff(1000) < 150), "{seen:?}");
    }
}
