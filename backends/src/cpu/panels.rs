//! Right factors of products, as panels of [`PANEL`] columns over the whole depth.
//!
//! ```text
//! f32   [panel][k][32]            forward: used where it lies
//! nf4   [panel][k][16 bytes]      column j in the low, column j + 16 in the high nibble of byte j
//! ```
//!
//! Backward panels (32 inputs over all outputs) are built from tiles of the forward ones into a thread's scratch, as
//! NF4 panels are: no second copy of a weight is kept.

use motley_kernels::nf4::{self, DoubleQuantized, dynamic_map};

use super::dequantize::{dequantize_rows, transpose};
use super::tile::{PANEL, PanelRow};
use crate::weight::{WeightFormat, WeightSource};
use crate::{Error, Result};

/// The right factor of a product.
pub(super) trait Panels: Sync {
    /// Panel `index`, where it lies or built into `scratch`.
    fn panel<'s>(&'s self, index: usize, scratch: &'s mut Vec<PanelRow>) -> &'s [PanelRow];

    /// Whether panels are built at each use, so that each should be used for as many rows as possible.
    fn built(&self) -> bool;
}

/// A prepared matrix W [out, in].
pub(super) struct PackedWeight {
    pub shape: [usize; 2],
    pub bias: Option<Vec<PanelRow>>,
    values: Values,
}

enum Values {
    F32(Vec<PanelRow>),
    Nf4 { codes: Vec<[u8; PANEL / 2]>, parts: Vec<Part> },
}

/// Scales of one separately quantized part.
struct Part {
    first_column: usize,
    scales: Scales,
}

enum Scales {
    Single(Vec<f32>),
    Double(DoubleQuantized),
}

impl Scales {
    fn absmax(&self, block: usize) -> f32 {
        match self {
            Scales::Single(absmax) => absmax[block],
            Scales::Double(double) => double.value(block, dynamic_map()),
        }
    }
}

impl PackedWeight {
    pub fn new(source: &WeightSource<'_>) -> Result<Self> {
        let shape = source.shape()?;
        let panels = shape[0].div_ceil(PANEL);
        let mut values = match source.format {
            WeightFormat::F32 => Values::F32(vec![PanelRow::ZERO; panels * shape[1]]),
            WeightFormat::Nf4 { .. } => {
                // Columns that pad the last panel are code 7, which is zero.
                Values::Nf4 { codes: vec![[0x77; PANEL / 2]; panels * shape[1]], parts: vec![] }
            }
        };
        let mut first_column = 0;
        for (index, part) in source.parts.iter().enumerate() {
            let stored = part.values();
            if source.format != WeightFormat::F32 {
                check_finite(index, &stored)?;
            }
            values.put(first_column, &stored, (shape[1], source.format));
            first_column += part.shape[0];
        }
        Ok(PackedWeight { shape, bias: source.bias.map(PanelRow::of), values })
    }

    pub fn panels(&self) -> usize {
        self.shape[0].div_ceil(PANEL)
    }

    /// Rows `k` of panel `index`, dequantized.
    fn rows<'s>(
        &'s self,
        index: usize,
        k: std::ops::Range<usize>,
        scratch: &'s mut [PanelRow],
    ) -> &'s [PanelRow] {
        let depth = self.shape[1];
        let place = index * depth + k.start..index * depth + k.end;
        match &self.values {
            Values::F32(rows) => &rows[place],
            Values::Nf4 { codes, parts } => {
                let scratch = &mut scratch[..k.len()];
                dequantize_panel(&codes[place], (parts, index, depth), k.start, scratch);
                scratch
            }
        }
    }

    /// The (dequantized) values [out, in], row-major.
    pub fn unpacked(&self) -> Vec<f32> {
        let [out, depth] = self.shape;
        let mut values = vec![0.0; out * depth];
        let mut scratch = vec![PanelRow::ZERO; depth];
        for index in 0..self.panels() {
            let rows = self.rows(index, 0..depth, &mut scratch);
            for (k, row) in rows.iter().enumerate() {
                for j in 0..PANEL.min(out - index * PANEL) {
                    values[(index * PANEL + j) * depth + k] = row.0[j];
                }
            }
        }
        values
    }
}

/// A broken weight must not become a sound one: what is not finite has no code.
fn check_finite(part: usize, values: &[f32]) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(element) => Err(Error::NonFinite { part, element, value: values[element] }),
    }
}

impl Values {
    /// Puts the rows of one part at columns `first_column` and on.
    fn put(&mut self, first_column: usize, values: &[f32], (depth, format): (usize, WeightFormat)) {
        match self {
            Values::F32(rows) => {
                for (i, row) in values.chunks_exact(depth.max(1)).enumerate() {
                    let column = first_column + i;
                    let panel = &mut rows[column / PANEL * depth..][..depth];
                    for (target, value) in panel.iter_mut().zip(row) {
                        target.0[column % PANEL] = *value;
                    }
                }
            }
            Values::Nf4 { codes, parts } => {
                let (packed, absmax) = nf4::quantize(values);
                for e in 0..values.len() {
                    let code = if e.is_multiple_of(2) { packed[e / 2] >> 4 } else { packed[e / 2] & 15 };
                    let (column, k) = (first_column + e / depth, e % depth);
                    let byte = &mut codes[column / PANEL * depth + k][column % (PANEL / 2)];
                    let high = column % PANEL >= PANEL / 2;
                    *byte = if high { *byte & 15 | code << 4 } else { *byte & 0xf0 | code };
                }
                let double = format == WeightFormat::Nf4 { double_quantization: true };
                let scales = if double {
                    Scales::Double(DoubleQuantized::new(&absmax))
                } else {
                    Scales::Single(absmax)
                };
                parts.push(Part { first_column, scales });
            }
        }
    }
}

/// Dequantizes rows `first_k` and on of panel `index`.
fn dequantize_panel(
    codes: &[[u8; PANEL / 2]],
    (parts, index, depth): (&[Part], usize, usize),
    first_k: usize,
    out: &mut [PanelRow],
) {
    let mut absmax = PanelRow::ZERO;
    let columns: [Option<(&Part, usize)>; PANEL] = std::array::from_fn(|j| {
        let column = index * PANEL + j;
        let part = parts.iter().rev().find(|part| part.first_column <= column)?;
        Some((part, (column - part.first_column) * depth))
    });
    // With a depth of whole blocks every column changes its scale at the same k; else each row is done by itself.
    let segment = if depth.is_multiple_of(nf4::BLOCK) { nf4::BLOCK } else { 1 };
    let mut done = 0;
    while done < codes.len() {
        let k = first_k + done;
        let count = (segment - k % segment).min(codes.len() - done);
        for (target, column) in absmax.0.iter_mut().zip(&columns) {
            *target =
                column.map_or(0.0, |(part, start)| part.scales.absmax_or_zero((start + k) / nf4::BLOCK));
        }
        dequantize_rows(&codes[done..done + count], &absmax, &mut out[done..done + count]);
        done += count;
    }
}

impl Scales {
    /// Zero for the columns that pad the last panel.
    fn absmax_or_zero(&self, block: usize) -> f32 {
        let count = match self {
            Scales::Single(absmax) => absmax.len(),
            Scales::Double(double) => double.codes.len(),
        };
        if block < count { self.absmax(block) } else { 0.0 }
    }
}

/// x·Wᵀ: panels of outputs over all inputs.
pub(super) struct Forward<'a>(pub &'a PackedWeight);

impl Panels for Forward<'_> {
    fn panel<'s>(&'s self, index: usize, scratch: &'s mut Vec<PanelRow>) -> &'s [PanelRow] {
        if self.built() {
            scratch.resize(self.0.shape[1].max(scratch.len()), PanelRow::ZERO);
        }
        self.0.rows(index, 0..self.0.shape[1], scratch)
    }

    fn built(&self) -> bool {
        matches!(self.0.values, Values::Nf4 { .. })
    }
}

/// dy·W: panels of inputs over all outputs.
pub(super) struct Backward<'a>(pub &'a PackedWeight);

impl Panels for Backward<'_> {
    fn panel<'s>(&'s self, index: usize, scratch: &'s mut Vec<PanelRow>) -> &'s [PanelRow] {
        let [out, width] = self.0.shape;
        let whole = self.0.panels() * PANEL;
        scratch.resize(whole.max(scratch.len()), PanelRow::ZERO);
        let first = index * PANEL;
        let k = first..width.min(first + PANEL);
        let mut tile = [PanelRow::ZERO; PANEL];
        for (panel, target) in scratch[..whole].chunks_exact_mut(PANEL).enumerate() {
            let rows = self.0.rows(panel, k.clone(), &mut tile);
            transpose(rows, target);
        }
        &scratch[..out]
    }

    fn built(&self) -> bool {
        true
    }
}
