//! The micro-kernel for AVX-512: up to 12 rows, two registers of 16 columns each.

use super::Block;

/// 12 rows of two accumulators leave eight registers for the panel and the broadcast row values.
pub(super) const ROWS: usize = 12;

/// # Safety
/// The processor has AVX-512F; the block's pointers reach over its rows, columns and k.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
pub(super) unsafe fn multiply(block: &Block) {
    // SAFETY: forwarded.
    unsafe {
        match block.rows {
            1 => rows::<1>(block),
            2 => rows::<2>(block),
            3 => rows::<3>(block),
            4 => rows::<4>(block),
            5 => rows::<5>(block),
            6 => rows::<6>(block),
            7 => rows::<7>(block),
            8 => rows::<8>(block),
            9 => rows::<9>(block),
            10 => rows::<10>(block),
            11 => rows::<11>(block),
            _ => rows::<12>(block),
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
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
unsafe fn rows<const R: usize>(block: &Block) {
    use std::arch::x86_64::{
        _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps,
        _mm512_set1_ps, _mm512_setzero_ps,
    };
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    let (mut panel, k) = (block.panel, block.k);
    // SAFETY: `p` stays below k, rows below R; the panel holds k·32 floats.
    unsafe {
        for p in 0..k {
            let left = _mm512_loadu_ps(panel);
            let right = _mm512_loadu_ps(panel.add(16));
            for (row, sum) in sums.iter_mut().enumerate() {
                let value = _mm512_set1_ps(*block.input.add(row * k + p));
                sum[0] = _mm512_fmadd_ps(value, left, sum[0]);
                sum[1] = _mm512_fmadd_ps(value, right, sum[1]);
            }
            panel = panel.add(32);
        }
    }
    let mask = if block.columns >= 32 { u32::MAX } else { (1 << block.columns) - 1 };
    let masks = [mask as u16, (mask >> 16) as u16];
    for (row, sum) in sums.iter().enumerate() {
        for half in 0..2 {
            // SAFETY: masked elements lie inside the block's columns; masked-out ones are not touched.
            unsafe {
                let target = block.output.add(row * block.output_stride).wrapping_add(half * 16);
                let before = if block.accumulate {
                    _mm512_maskz_loadu_ps(masks[half], target)
                } else {
                    _mm512_setzero_ps()
                };
                let value = if block.accumulate { _mm512_add_ps(sum[half], before) } else { sum[half] };
                _mm512_mask_storeu_ps(target, masks[half], value);
            }
        }
    }
}
