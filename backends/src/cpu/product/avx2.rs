//! The micro-kernel for AVX2 with FMA: up to 6 rows, the panel in two halves of two registers.

use super::Block;

/// 6 rows of two accumulators leave four registers for panel and broadcast values.
pub(super) const ROWS: usize = 6;

/// # Safety
/// The processor has AVX2 and FMA; the block's pointers reach over its rows, columns and k.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn multiply(block: &Block) {
    // SAFETY: forwarded.
    unsafe {
        match block.rows {
            1 => rows::<1>(block),
            2 => rows::<2>(block),
            3 => rows::<3>(block),
            4 => rows::<4>(block),
            5 => rows::<5>(block),
            _ => rows::<6>(block),
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) unsafe fn multiply(block: &Block) {
    // SAFETY: forwarded.
    unsafe { super::portable::multiply(block) }
}

/// # Safety
/// As `multiply`, with exactly `R` rows.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn rows<const R: usize>(block: &Block) {
    use std::arch::x86_64::{
        _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
    };
    let k = block.k;
    for half in 0..2 {
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        // SAFETY: `p` stays below k, rows below R; the panel holds k·32 floats.
        unsafe {
            let mut panel = block.panel.add(half * 16);
            for p in 0..k {
                let left = _mm256_loadu_ps(panel);
                let right = _mm256_loadu_ps(panel.add(8));
                for (row, sum) in sums.iter_mut().enumerate() {
                    let value = _mm256_set1_ps(*block.input.add(row * k + p));
                    sum[0] = _mm256_fmadd_ps(value, left, sum[0]);
                    sum[1] = _mm256_fmadd_ps(value, right, sum[1]);
                }
                panel = panel.wrapping_add(32);
            }
        }
        let columns = block.columns.saturating_sub(half * 16).min(16);
        for (row, sum) in sums.iter().enumerate() {
            let mut values = [0.0f32; 16];
            // SAFETY: `values` holds 16 floats; the target row holds `columns` from here on.
            unsafe {
                _mm256_storeu_ps(values.as_mut_ptr(), sum[0]);
                _mm256_storeu_ps(values.as_mut_ptr().add(8), sum[1]);
                let target = block.output.add(row * block.output_stride).wrapping_add(half * 16);
                for (i, value) in values[..columns].iter().enumerate() {
                    let before = if block.accumulate { *target.add(i) } else { 0.0 };
                    *target.add(i) = if block.accumulate { before + value } else { *value };
                }
            }
        }
    }
}
