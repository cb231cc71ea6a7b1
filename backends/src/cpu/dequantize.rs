//! Two small helpers of panels: NF4 codes to values, and tiles turned over.

use motley_kernels::nf4::CODE;
use motley_kernels::simd::{Level, level};

use super::tile::{PANEL, PanelRow};

const HALF: usize = PANEL / 2;

/// out[k][j] = CODE[code of column j at k]·absmax[j], rounded as the specification of `nf4` does.
pub(super) fn dequantize_rows(codes: &[[u8; HALF]], absmax: &PanelRow, out: &mut [PanelRow]) {
    match level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has AVX-512.
        Level::Avx512 => unsafe { avx512::dequantize_rows(codes, absmax, out) },
        _ => portable(codes, absmax, out),
    }
}

fn portable(codes: &[[u8; HALF]], absmax: &PanelRow, out: &mut [PanelRow]) {
    for (codes, out) in codes.iter().zip(out) {
        for j in 0..HALF {
            out.0[j] = CODE[usize::from(codes[j] & 15)] * absmax.0[j];
            out.0[j + HALF] = CODE[usize::from(codes[j] >> 4)] * absmax.0[j + HALF];
        }
    }
}

/// target[j][i] = rows[i][j]; zero where there is no row i.
pub(super) fn transpose(rows: &[PanelRow], target: &mut [PanelRow]) {
    #[cfg(target_arch = "x86_64")]
    if let (Level::Avx512, Ok(rows), Ok(target)) =
        (level(), <&[PanelRow; PANEL]>::try_from(rows), <&mut [PanelRow; PANEL]>::try_from(&mut *target))
    {
        // SAFETY: the processor has AVX-512.
        return unsafe { avx512::transpose(rows, target) };
    }
    for (j, target) in target.iter_mut().enumerate() {
        *target = PanelRow::ZERO;
        for (i, row) in rows.iter().enumerate() {
            target.0[i] = row.0[j];
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{CODE, HALF, PANEL, PanelRow};

    #[target_feature(enable = "avx512f")]
    pub fn dequantize_rows(codes: &[[u8; HALF]], absmax: &PanelRow, out: &mut [PanelRow]) {
        // SAFETY: the table and each half of a panel row hold 16 floats, 16 codes are 16 bytes.
        unsafe {
            let table = _mm512_loadu_ps(CODE.as_ptr());
            let scales = (_mm512_load_ps(absmax.0.as_ptr()), _mm512_load_ps(absmax.0.as_ptr().add(HALF)));
            for (codes, out) in codes.iter().zip(out) {
                let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.as_ptr().cast()));
                // A permutation looks at the lowest four bits of each index alone.
                let low = _mm512_permutexvar_ps(codes, table);
                let high = _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(codes), table);
                _mm512_store_ps(out.0.as_mut_ptr(), _mm512_mul_ps(low, scales.0));
                _mm512_store_ps(out.0.as_mut_ptr().add(HALF), _mm512_mul_ps(high, scales.1));
            }
        }
    }

    /// Four blocks of 16 × 16.
    #[target_feature(enable = "avx512f")]
    pub fn transpose(rows: &[PanelRow; PANEL], target: &mut [PanelRow; PANEL]) {
        for (i, j) in [(0, 0), (0, HALF), (HALF, 0), (HALF, HALF)] {
            // SAFETY: i and j are 0 or 16, so each load and store is half of one of 32 rows.
            unsafe {
                let block = std::array::from_fn(|r| _mm512_load_ps(rows[i + r].0.as_ptr().add(j)));
                for (c, column) in transpose_block(block).into_iter().enumerate() {
                    _mm512_store_ps(target[j + c].0.as_mut_ptr().add(i), column);
                }
            }
        }
    }

    /// Pairs of rows are interleaved by one, two, four and eight elements in turn.
    #[target_feature(enable = "avx512f")]
    fn transpose_block(rows: [__m512; HALF]) -> [__m512; HALF] {
        let mut ones = rows;
        for r in (0..HALF).step_by(2) {
            ones[r] = _mm512_unpacklo_ps(rows[r], rows[r + 1]);
            ones[r + 1] = _mm512_unpackhi_ps(rows[r], rows[r + 1]);
        }
        let mut twos = ones;
        for r in (0..HALF).step_by(4) {
            let pair = |low, high| (_mm512_castps_pd(low), _mm512_castps_pd(high));
            for k in 0..2 {
                let (low, high) = pair(ones[r + k], ones[r + k + 2]);
                twos[r + 2 * k] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
                twos[r + 2 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
            }
        }
        // twos[4·q + c] holds, in each quarter s, column 4·s + c of rows 4·q to 4·q + 3.
        let mut columns = twos;
        for c in 0..4 {
            let even = _mm512_shuffle_f32x4::<0b10_00_10_00>(twos[c], twos[4 + c]);
            let odd = _mm512_shuffle_f32x4::<0b11_01_11_01>(twos[c], twos[4 + c]);
            let even_below = _mm512_shuffle_f32x4::<0b10_00_10_00>(twos[8 + c], twos[12 + c]);
            let odd_below = _mm512_shuffle_f32x4::<0b11_01_11_01>(twos[8 + c], twos[12 + c]);
            columns[c] = _mm512_shuffle_f32x4::<0b10_00_10_00>(even, even_below);
            columns[8 + c] = _mm512_shuffle_f32x4::<0b11_01_11_01>(even, even_below);
            columns[4 + c] = _mm512_shuffle_f32x4::<0b10_00_10_00>(odd, odd_below);
            columns[12 + c] = _mm512_shuffle_f32x4::<0b11_01_11_01>(odd, odd_below);
        }
        columns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_and_plain_dequantization_give_the_same_bits() {
        let codes: Vec<[u8; HALF]> =
            (0..40u32).map(|k| std::array::from_fn(|j| (k * 37 + j as u32 * 91) as u8)).collect();
        let absmax = PanelRow(std::array::from_fn(|j| 0.01 + j as f32 * 0.37));
        let (mut fast, mut plain) = ([PanelRow::ZERO; 40], [PanelRow::ZERO; 40]);
        dequantize_rows(&codes, &absmax, &mut fast);
        portable(&codes, &absmax, &mut plain);
        assert!(fast.iter().zip(&plain).all(|(a, b)| a.0.map(f32::to_bits) == b.0.map(f32::to_bits)));
    }

    #[test]
    fn tiles_are_turned_over() {
        let rows: Vec<PanelRow> =
            (0..7).map(|i| PanelRow(std::array::from_fn(|j| (i * 100 + j) as f32))).collect();
        let mut target = [PanelRow([f32::NAN; PANEL]); PANEL];
        transpose(&rows, &mut target);
        for (j, row) in target.iter().enumerate() {
            let wanted: [f32; PANEL] =
                std::array::from_fn(|i| if i < 7 { (i * 100 + j) as f32 } else { 0.0 });
            assert_eq!(row.0, wanted);
        }
    }
}
