//! The micro-kernel without special instructions: up to 4 rows.

use super::{Block, PANEL};

/// Four rows of 32 sums are what compilers keep near without wide registers.
pub(super) const ROWS: usize = 4;

/// # Safety
/// The block's pointers reach over its rows, columns and k.
pub(super) unsafe fn multiply(block: &Block) {
    for row in 0..block.rows {
        let mut sums = [0.0f32; PANEL];
        for p in 0..block.k {
            // SAFETY: p < k, and the panel holds k·32 floats.
            let (value, panel) = unsafe {
                let panel = std::slice::from_raw_parts(block.panel.add(p * PANEL), PANEL);
                (*block.input.add(row * block.k + p), panel)
            };
            for (sum, weight) in sums.iter_mut().zip(panel) {
                *sum += value * weight;
            }
        }
        for (i, sum) in sums[..block.columns].iter().enumerate() {
            // SAFETY: the row holds `columns` elements.
            unsafe {
                let target = block.output.add(row * block.output_stride + i);
                *target = if block.accumulate { *target + sum } else { *sum };
            }
        }
    }
}
