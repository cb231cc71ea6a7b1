//! Random weights: any shape can be run without its files. A value depends on the seed, its tensor's name and its
//! place alone.

use motley_kernels::dropout::philox::philox;

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
    debug_assert!(first.is_multiple_of(BLOCK), "blocks are not cut");
    let key = [seed as u32, (seed >> 32) as u32];
    let tensor = fnv(name);
    let mut values = vec![0.0; count];
    for (block, values) in values.chunks_mut(BLOCK).enumerate() {
        let counter = [(first / BLOCK + block) as u32, tensor as u32, (tensor >> 32) as u32, RANDOM];
        for (value, word) in values.iter_mut().zip(philox(counter, key)) {
            let sum: u32 = word.to_le_bytes().into_iter().map(u32::from).sum();
            *value = (sum as f32 - BYTES_MEAN) * (DEVIATION / BYTES_DEVIATION);
        }
    }
    values
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
    }
}
