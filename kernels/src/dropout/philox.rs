//! Philox4x32-10: four random words from a counter and a key, without state.

use crate::multiversion;
use crate::simd::LANES;

const MULTIPLIER: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
const ROUNDS: usize = 10;

#[inline(always)]
fn high_low(a: u32, b: u32) -> (u32, u32) {
    let product = u64::from(a) * u64::from(b);
    ((product >> 32) as u32, product as u32)
}

/// The block of `counter` under `key`.
#[inline(always)]
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut a, mut b, mut c, mut d] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        let (high0, low0) = high_low(MULTIPLIER[0], a);
        let (high1, low1) = high_low(MULTIPLIER[1], c);
        (a, b, c, d) = (high1 ^ b ^ k0, low1, high0 ^ d ^ k1, low0);
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [a, b, c, d]
}

multiversion! {
    /// Words of the blocks of the counters (first, rest), (first + 1, rest), ..., one block behind the other.
    pub fn fill(first: u32, rest: [u32; 3], key: [u32; 2], words: &mut [u32]) {
        let _ = FMA;
        let mut next = first;
        let mut runs = words.chunks_exact_mut(4 * LANES);
        for run in &mut runs {
            let blocks = philox_lanes(next, rest, key);
            for lane in 0..LANES {
                for word in 0..4 {
                    run[lane * 4 + word] = blocks[word][lane];
                }
            }
            next = next.wrapping_add(LANES as u32);
        }
        for block in runs.into_remainder().chunks_mut(4) {
            let [b, c, d] = rest;
            block.copy_from_slice(&philox([next, b, c, d], key)[..block.len()]);
            next = next.wrapping_add(1);
        }
    }
}

/// `philox` of the counters (first + lane, rest).
#[inline(always)]
pub(crate) fn philox_lanes(first: u32, rest: [u32; 3], key: [u32; 2]) -> [[u32; LANES]; 4] {
    let mut a: [u32; LANES] = std::array::from_fn(|lane| first.wrapping_add(lane as u32));
    let (mut b, mut c, mut d) = ([rest[0]; LANES], [rest[1]; LANES], [rest[2]; LANES]);
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        for i in 0..LANES {
            let p0 = 0xd251_1f53_u64 * u64::from(a[i]);
            let p1 = 0xcd9e_8d57_u64 * u64::from(c[i]);
            (a[i], b[i], c[i], d[i]) =
                ((p1 >> 32) as u32 ^ b[i] ^ k0, p1 as u32, (p0 >> 32) as u32 ^ d[i] ^ k1, p0 as u32);
        }
        k0 = k0.wrapping_add(0x9e37_79b9);
        k1 = k1.wrapping_add(0xbb67_ae85);
    }
    [a, b, c, d]
}

/// Uniform in [0, 1) with 24 bits.
pub fn uniform(word: u32) -> f32 {
    (word >> 8) as f32 / (1u32 << 24) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers_of_random123() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        let counter = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(
            philox(counter, [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn a_run_of_words_is_that_of_its_blocks() {
        for (first, count) in [(0, 0), (5, 3), (7, 64), (u32::MAX - 9, 131)] {
            let mut words = vec![0; count];
            fill(first, [1, 2, 3], [4, 5], &mut words);
            let blocks = (0..).map(|block| philox([first.wrapping_add(block), 1, 2, 3], [4, 5]));
            assert_eq!(words, blocks.flatten().take(count).collect::<Vec<u32>>());
        }
    }
}
