//! The specification of `nf4`: quantize and dequantize with single scales.

use super::{BLOCK, CODE};

/// Absmax of an all-zero block counts as this.
const ABSMAX_MIN: f32 = 1e-38;

/// Index of the nearest value; an exact tie between two goes to the lower.
fn nearest(scaled: f32) -> u8 {
    let mut code = 0;
    for pair in CODE.windows(2) {
        // The midpoint is rounded to f32 before it is compared.
        if (pair[0] + pair[1]) / 2.0 < scaled {
            code += 1;
        }
    }
    code
}

/// Returns the packed codes and one absmax a block.
///
/// # Panics
/// If a value is not finite: NaN would get the code of 0, and infinity turn its whole block into NaN.
pub fn quantize(x: &[f32]) -> (Vec<u8>, Vec<f32>) {
    assert!(x.iter().all(|v| v.is_finite()), "NF4 has codes for finite values alone");
    let (mut codes, mut scales) = (Vec::with_capacity(x.len() + 1), vec![]);
    for block in x.chunks(BLOCK) {
        let absmax = block.iter().fold(0.0f32, |a, b| a.max(b.abs()));
        let floor = absmax.max(ABSMAX_MIN);
        // Whole blocks multiply by the reciprocal, a short last block divides; the two round differently.
        let reciprocal = 1.0 / floor;
        for value in block {
            let scaled = if block.len() == BLOCK { value * reciprocal } else { value / floor };
            codes.push(nearest(scaled.clamp(-1.0, 1.0)));
        }
        scales.push(absmax);
    }
    if codes.len() % 2 == 1 {
        codes.push(0);
    }
    (codes.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect(), scales)
}

/// Returns `count` values.
pub fn dequantize(packed: &[u8], absmax: &[f32], count: usize) -> Vec<f32> {
    let code = |i: usize| if i.is_multiple_of(2) { packed[i / 2] >> 4 } else { packed[i / 2] & 15 };
    (0..count).map(|i| CODE[code(i) as usize] * absmax[i / BLOCK]).collect()
}
