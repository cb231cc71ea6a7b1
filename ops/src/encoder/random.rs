//! Random weights: any shape can be run without its files. A value depends on the seed, its tensor's name and its
//! place alone.

use motley_kernels::dropout::philox;

/// Standard deviation, as models are initialised.
const DEVIATION: f32 = 0.02;
/// Of the sum of four bytes: √(4·(256² − 1)/12), and their mean.
const BYTES_DEVIATION: f32 = 147.800_31;
const BYTES_MEAN: f32 = 510.0;
/// Values of one block of the generator: one a word, the sum of its four bytes, which is close to a normal variable.
const BLOCK: usize = 4;
/// Last word of the counter, apart from those of draws while training, which name a token of a text.
const RANDOM: u32 = u32::MAX;

/// Values of the tensor `name` from element `first`, a multiple of four, on.
pub(super) fn values(seed: u64, name: &str, first: usize, count: usize) -> Vec<f32> {
    words(seed, name, first, count).into_iter().map(value).collect()
}

/// As [`values`] from the first on, as little-endian bytes of bf16.
pub(super) fn halves(seed: u64, name: &str, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; 2 * count];
    for (bytes, word) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(words(seed, name, 0, count)) {
        *bytes = half::bf16::from_f32(value(word)).to_le_bytes();
    }
    bytes
}

fn words(seed: u64, name: &str, first: usize, count: usize) -> Vec<u32> {
    debug_assert!(first.is_multiple_of(BLOCK), "blocks are not cut");
    let tensor = fnv(name);
    let mut words = vec![0; count];
    let counter = [tensor as u32, (tensor >> 32) as u32, RANDOM];
    philox::fill((first / BLOCK) as u32, counter, [seed as u32, (seed >> 32) as u32], &mut words);
    words
}

fn value(word: u32) -> f32 {
    let sum: u32 = word.to_le_bytes().into_iter().map(u32::from).sum();
    (sum as f32 - BYTES_MEAN) * (DEVIATION / BYTES_DEVIATION)
}

/// FNV-1a.
fn fnv(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_the_moments_of_a_normal_variable_and_their_own_names() {
        let x = values(7, "a", 0, 100_000);
        let moment = |power: i32| x.iter().map(|v| f64::from(*v / DEVIATION).powi(power)).sum::<f64>() / 1e5;
        // Standard errors at n = 100,000 are 0.003, 0.004 and 0.03; the fourth moment of four bytes is 2.7.
        assert!(moment(1).abs() < 0.01 && (moment(2) - 1.0).abs() < 0.02, "{} {}", moment(1), moment(2));
        assert!((moment(4) - 2.7).abs() < 0.1, "{}", moment(4));
        assert_eq!(values(7, "a", 400, 10), x[400..410]);
        assert_ne!(values(8, "a", 0, 10), x[..10]);
        assert_ne!(values(7, "b", 0, 10), x[..10]);
        let rounded: Vec<u8> = x[..9].iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
        assert_eq!(halves(7, "a", 9), rounded);
    }
}
