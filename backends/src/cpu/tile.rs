//! The inner product kernel: up to [`ROWS`] rows by one panel of [`PANEL`] columns, sums kept in registers.
//!
//! ```text
//! tile[r][j] = Σ_k a[r·stride + k]·panel[k][j]      k ascending, one accumulator an element
//! ```
//!
//! Whatever the number of rows, each element is added up in the same order with the same (fused) operations: that is
//! what makes products batch-invariant. 14 × 32 takes 28 of the 32 registers of AVX-512; with AVX2, 6 × 16 takes 12
//! of 16, and a panel is walked in halves.

use motley_kernels::simd::{Level, level};

/// Columns of a panel.
pub(crate) const PANEL: usize = 32;
/// Rows of a tile at most.
pub(super) const ROWS: usize = 14;

/// The values of all columns of a panel at one k.
#[repr(C, align(128))]
#[derive(Clone, Copy)]
pub(super) struct PanelRow(pub [f32; PANEL]);

impl PanelRow {
    pub const ZERO: PanelRow = PanelRow([0.0; PANEL]);
}

/// Finished sums.
#[repr(C, align(64))]
pub(super) struct Tile(pub [[f32; PANEL]; ROWS]);

/// Fills the first `rows` rows of `tile` from the rows of `a` at multiples of `stride`.
///
/// # Panics
/// If `a` is too short or `rows` is not in 1..=[`ROWS`].
pub(super) fn multiply(rows: usize, (a, stride): (&[f32], usize), panel: &[PanelRow], tile: &mut Tile) {
    assert!((1..=ROWS).contains(&rows), "a tile has 1 to {ROWS} rows");
    assert!(a.len() >= (rows - 1) * stride + panel.len(), "the left factor has all its rows");
    match level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has AVX-512, and `a` was checked to hold `rows` rows of the panel's depth.
        Level::Avx512 => unsafe { avx512::any(rows, (a.as_ptr(), stride), panel, tile) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has AVX2 and FMA, and `a` was checked as above.
        Level::Avx2 => unsafe { avx2::any(rows, (a.as_ptr(), stride), panel, tile) },
        _ => portable(rows, (a, stride), panel, tile),
    }
}

fn portable(rows: usize, (a, stride): (&[f32], usize), panel: &[PanelRow], tile: &mut Tile) {
    for r in 0..rows {
        let mut sums = [0.0f32; PANEL];
        for (x, row) in a[r * stride..].iter().zip(panel) {
            for j in 0..PANEL {
                sums[j] += x * row.0[j];
            }
        }
        tile.0[r] = sums;
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{PanelRow, ROWS, Tile};

    /// # Safety
    /// `a` holds `rows` ≤ [`ROWS`] rows of the panel's depth, `stride` apart; the processor has AVX-512.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn any(rows: usize, a: (*const f32, usize), panel: &[PanelRow], tile: &mut Tile) {
        // SAFETY: the caller's promise, handed on.
        unsafe {
            match rows {
                1 => fixed::<1>(a, panel, tile),
                2 => fixed::<2>(a, panel, tile),
                3 => fixed::<3>(a, panel, tile),
                4 => fixed::<4>(a, panel, tile),
                5 => fixed::<5>(a, panel, tile),
                6 => fixed::<6>(a, panel, tile),
                7 => fixed::<7>(a, panel, tile),
                8 => fixed::<8>(a, panel, tile),
                9 => fixed::<9>(a, panel, tile),
                10 => fixed::<10>(a, panel, tile),
                11 => fixed::<11>(a, panel, tile),
                12 => fixed::<12>(a, panel, tile),
                13 => fixed::<13>(a, panel, tile),
                _ => fixed::<ROWS>(a, panel, tile),
            }
        }
    }

    /// # Safety
    /// As for `any`, with R rows.
    #[target_feature(enable = "avx512f")]
    unsafe fn fixed<const R: usize>((a, stride): (*const f32, usize), panel: &[PanelRow], tile: &mut Tile) {
        let mut low = [_mm512_setzero_ps(); R];
        let mut high = [_mm512_setzero_ps(); R];
        for (k, row) in panel.iter().enumerate() {
            // SAFETY: a panel row holds 32 floats and is aligned to 128 bytes.
            let (b0, b1) =
                unsafe { (_mm512_load_ps(row.0.as_ptr()), _mm512_load_ps(row.0.as_ptr().add(16))) };
            for r in 0..R {
                // SAFETY: r < R rows and k < the panel's depth.
                let x = _mm512_set1_ps(unsafe { *a.add(r * stride + k) });
                low[r] = _mm512_fmadd_ps(x, b0, low[r]);
                high[r] = _mm512_fmadd_ps(x, b1, high[r]);
            }
        }
        for r in 0..R {
            // SAFETY: a row of the tile holds 32 floats.
            unsafe {
                _mm512_storeu_ps(tile.0[r].as_mut_ptr(), low[r]);
                _mm512_storeu_ps(tile.0[r].as_mut_ptr().add(16), high[r]);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{PANEL, PanelRow, Tile};

    /// Rows that fit the registers.
    const ROWS: usize = 6;

    /// # Safety
    /// `a` holds `rows` rows of the panel's depth, `stride` apart; the processor has AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn any(rows: usize, (a, stride): (*const f32, usize), panel: &[PanelRow], tile: &mut Tile) {
        for first in (0..rows).step_by(ROWS) {
            for half in [0, PANEL / 2] {
                // SAFETY: the rows from `first` on are among those that the caller promised.
                unsafe {
                    let a = (a.add(first * stride), stride);
                    match (rows - first).min(ROWS) {
                        1 => fixed::<1>(a, panel, (tile, first, half)),
                        2 => fixed::<2>(a, panel, (tile, first, half)),
                        3 => fixed::<3>(a, panel, (tile, first, half)),
                        4 => fixed::<4>(a, panel, (tile, first, half)),
                        5 => fixed::<5>(a, panel, (tile, first, half)),
                        _ => fixed::<ROWS>(a, panel, (tile, first, half)),
                    }
                }
            }
        }
    }

    /// # Safety
    /// As for `any`, with R rows; `half` is 0 or 16.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn fixed<const R: usize>(
        (a, stride): (*const f32, usize),
        panel: &[PanelRow],
        (tile, first, half): (&mut Tile, usize, usize),
    ) {
        let mut low = [_mm256_setzero_ps(); R];
        let mut high = [_mm256_setzero_ps(); R];
        for (k, row) in panel.iter().enumerate() {
            // SAFETY: half + 16 ≤ 32 floats of an aligned panel row.
            let (b0, b1) = unsafe {
                let start = row.0.as_ptr().add(half);
                (_mm256_load_ps(start), _mm256_load_ps(start.add(8)))
            };
            for r in 0..R {
                // SAFETY: r < R rows and k < the panel's depth.
                let x = _mm256_set1_ps(unsafe { *a.add(r * stride + k) });
                low[r] = _mm256_fmadd_ps(x, b0, low[r]);
                high[r] = _mm256_fmadd_ps(x, b1, high[r]);
            }
        }
        for r in 0..R {
            // SAFETY: half + 16 ≤ 32 floats of a row of the tile.
            unsafe {
                let target = tile.0[first + r].as_mut_ptr().add(half);
                _mm256_storeu_ps(target, low[r]);
                _mm256_storeu_ps(target.add(8), high[r]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_gives_the_sums() {
        let depth = 37;
        let a: Vec<f32> = (0..ROWS * depth).map(|i| ((i * 7) % 13) as f32 - 6.0).collect();
        let panel: Vec<PanelRow> =
            (0..depth).map(|k| PanelRow(std::array::from_fn(|j| ((k * 5 + j * 3) % 11) as f32))).collect();
        for rows in 1..=ROWS {
            let mut tiles: Vec<Tile> = (0..3).map(|_| Tile([[f32::NAN; PANEL]; ROWS])).collect();
            portable(rows, (&a, depth), &panel, &mut tiles[0]);
            multiply(rows, (&a, depth), &panel, &mut tiles[1]);
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                // SAFETY: the processor was asked, and `a` has all its rows.
                unsafe { avx2::any(rows, (a.as_ptr(), depth), &panel, &mut tiles[2]) };
                assert_eq!(tiles[2].0[..rows], tiles[0].0[..rows]);
            }
            // Small whole numbers: every order of additions is exact.
            assert_eq!(tiles[1].0[..rows], tiles[0].0[..rows]);
            for r in 0..rows {
                let sum: f32 = (0..depth).map(|k| a[r * depth + k] * panel[k].0[5]).sum();
                assert_eq!(tiles[0].0[r][5], sum);
            }
        }
    }
}
