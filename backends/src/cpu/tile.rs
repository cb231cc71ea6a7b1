//! The inner product kernel: up to [`ROWS`] rows by one panel of [`PANEL`] columns, sums kept in registers.
//!
//! ```text
//! target[r][j] = Σ_k left[r][k]·panel[k][j] + bias[j]      k ascending, one accumulator an element
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

    /// Panels of a vector, padded with zeros.
    pub fn of(values: &[f32]) -> Vec<PanelRow> {
        let row = |chunk: &[f32]| PanelRow(std::array::from_fn(|j| chunk.get(j).copied().unwrap_or(0.0)));
        values.chunks(PANEL).map(row).collect()
    }
}

/// Sums that need more than a bias before they are stored.
#[repr(C, align(64))]
pub(super) struct Tile(pub [[f32; PANEL]; ROWS]);

/// Rows of a left factor, at multiples of `stride` elements.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub count: usize,
}

/// Where sums go: rows of [`PANEL`] elements, at multiples of `stride`.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub start: *mut f32,
    pub stride: usize,
}

impl Target {
    pub fn tile(tile: &mut Tile) -> Self {
        Target { start: tile.0.as_mut_ptr().cast(), stride: PANEL }
    }
}

/// target[r][j] = Σ_k left[r][k]·panel[k][j] (+ bias[j])
///
/// # Panics
/// If the left factor is shorter than its rows, or has none or more than [`ROWS`].
///
/// # Safety
/// `target` may be written for as many rows as `left` has, and nobody else uses it.
pub(super) unsafe fn multiply(left: Rows<'_>, panel: &[PanelRow], bias: Option<&PanelRow>, target: Target) {
    let rows = left.count;
    assert!((1..=ROWS).contains(&rows), "a tile has 1 to {ROWS} rows");
    assert!(left.data.len() >= (rows - 1) * left.stride + panel.len(), "the left factor has all its rows");
    match level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has AVX-512, `left` was checked to hold its rows, `target` is the caller's promise.
        Level::Avx512 => unsafe { avx512::any(left, panel, bias, target) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has AVX2 and FMA, the rest as above.
        Level::Avx2 => unsafe { avx2::any(left, panel, bias, target) },
        // SAFETY: `target` is the caller's promise.
        _ => unsafe { portable(left, panel, bias, target) },
    }
}

/// # Safety
/// As for `multiply`.
unsafe fn portable(left: Rows<'_>, panel: &[PanelRow], bias: Option<&PanelRow>, target: Target) {
    for r in 0..left.count {
        let mut sums = [0.0f32; PANEL];
        for (x, row) in left.data[r * left.stride..].iter().zip(panel) {
            for j in 0..PANEL {
                sums[j] += x * row.0[j];
            }
        }
        if let Some(bias) = bias {
            for j in 0..PANEL {
                sums[j] += bias.0[j];
            }
        }
        // SAFETY: row r of the target may be written.
        unsafe { target.start.add(r * target.stride).cast::<[f32; PANEL]>().write_unaligned(sums) };
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{PanelRow, ROWS, Rows, Target};

    /// # Safety
    /// As for `multiply`, after its checks; the processor has AVX-512.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn any(left: Rows<'_>, panel: &[PanelRow], bias: Option<&PanelRow>, target: Target) {
        // SAFETY: the caller's promise, handed on.
        unsafe {
            match left.count {
                1 => fixed::<1>(left, panel, bias, target),
                2 => fixed::<2>(left, panel, bias, target),
                3 => fixed::<3>(left, panel, bias, target),
                4 => fixed::<4>(left, panel, bias, target),
                5 => fixed::<5>(left, panel, bias, target),
                6 => fixed::<6>(left, panel, bias, target),
                7 => fixed::<7>(left, panel, bias, target),
                8 => fixed::<8>(left, panel, bias, target),
                9 => fixed::<9>(left, panel, bias, target),
                10 => fixed::<10>(left, panel, bias, target),
                11 => fixed::<11>(left, panel, bias, target),
                12 => fixed::<12>(left, panel, bias, target),
                13 => fixed::<13>(left, panel, bias, target),
                _ => fixed::<ROWS>(left, panel, bias, target),
            }
        }
    }

    /// # Safety
    /// As for `any`, with R rows.
    #[target_feature(enable = "avx512f")]
    unsafe fn fixed<const R: usize>(
        left: Rows<'_>,
        panel: &[PanelRow],
        bias: Option<&PanelRow>,
        target: Target,
    ) {
        let (a, stride) = (left.data.as_ptr(), left.stride);
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
        if let Some(bias) = bias {
            // SAFETY: as for a panel row.
            let (b0, b1) =
                unsafe { (_mm512_load_ps(bias.0.as_ptr()), _mm512_load_ps(bias.0.as_ptr().add(16))) };
            for r in 0..R {
                low[r] = _mm512_add_ps(low[r], b0);
                high[r] = _mm512_add_ps(high[r], b1);
            }
        }
        for r in 0..R {
            // SAFETY: 32 floats of row r of the target may be written.
            unsafe {
                let start = target.start.add(r * target.stride);
                _mm512_storeu_ps(start, low[r]);
                _mm512_storeu_ps(start.add(16), high[r]);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{PANEL, PanelRow, Rows, Target};

    /// Rows that fit the registers.
    const ROWS: usize = 6;

    /// # Safety
    /// As for `multiply`, after its checks; the processor has AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn any(left: Rows<'_>, panel: &[PanelRow], bias: Option<&PanelRow>, target: Target) {
        for first in (0..left.count).step_by(ROWS) {
            for half in [0, PANEL / 2] {
                // SAFETY: the rows from `first` on are among those that the caller promised.
                unsafe {
                    let start = target.start.add(first * target.stride + half);
                    let target = Target { start, ..target };
                    let left = Rows { data: &left.data[first * left.stride..], ..left };
                    let bias = (bias, half);
                    match (left.count - first).min(ROWS) {
                        1 => fixed::<1>(left, panel, bias, target),
                        2 => fixed::<2>(left, panel, bias, target),
                        3 => fixed::<3>(left, panel, bias, target),
                        4 => fixed::<4>(left, panel, bias, target),
                        5 => fixed::<5>(left, panel, bias, target),
                        _ => fixed::<ROWS>(left, panel, bias, target),
                    }
                }
            }
        }
    }

    /// # Safety
    /// As for `any`, with R rows; `half` is 0 or 16, the column at which `target` starts.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn fixed<const R: usize>(
        left: Rows<'_>,
        panel: &[PanelRow],
        (bias, half): (Option<&PanelRow>, usize),
        target: Target,
    ) {
        let (a, stride) = (left.data.as_ptr(), left.stride);
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
            // SAFETY: 16 floats of row r of the target may be written, and of the bias from `half` on be read.
            unsafe {
                if let Some(bias) = bias {
                    let start = bias.0.as_ptr().add(half);
                    low[r] = _mm256_add_ps(low[r], _mm256_load_ps(start));
                    high[r] = _mm256_add_ps(high[r], _mm256_load_ps(start.add(8)));
                }
                let start = target.start.add(r * target.stride);
                _mm256_storeu_ps(start, low[r]);
                _mm256_storeu_ps(start.add(8), high[r]);
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
        let bias = PanelRow(std::array::from_fn(|j| j as f32));
        for (rows, bias) in (1..=ROWS).flat_map(|rows| [(rows, None), (rows, Some(&bias))]) {
            let mut tiles: Vec<Tile> = (0..3).map(|_| Tile([[f32::NAN; PANEL]; ROWS])).collect();
            let left = Rows { data: &a, stride: depth, count: rows };
            // SAFETY: a tile has room for the rows; the processor is asked before AVX2 is used.
            unsafe {
                portable(left, &panel, bias, Target::tile(&mut tiles[0]));
                multiply(left, &panel, bias, Target::tile(&mut tiles[1]));
                #[cfg(target_arch = "x86_64")]
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    avx2::any(left, &panel, bias, Target::tile(&mut tiles[2]));
                    assert_eq!(tiles[2].0[..rows], tiles[0].0[..rows]);
                }
            }
            // Small whole numbers: every order of additions is exact.
            assert_eq!(tiles[1].0[..rows], tiles[0].0[..rows]);
            for r in 0..rows {
                let sum: f32 = (0..depth).map(|k| a[r * depth + k] * panel[k].0[5]).sum();
                assert_eq!(tiles[0].0[r][5], sum + bias.map_or(0.0, |b| b.0[5]));
            }
        }
    }
}
