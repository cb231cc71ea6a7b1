//! A weight in NF4, dequantized a panel at a time.

use motley_kernels::multiversion;
use motley_kernels::nf4::{self, BLOCK, CODE, DoubleQuantized};

use super::PANEL;
use crate::WeightPart;

/// Parts stacked along `out`, each [out, in] row-major in four bits.
pub(super) struct Quantized {
    parts: Vec<Part>,
    shape: [usize; 2],
}

struct Part {
    first_row: usize,
    rows: usize,
    columns: usize,
    packed: Vec<u8>,
    scales: Scales,
}

enum Scales {
    Single(Vec<f32>),
    Double(DoubleQuantized),
}

impl Quantized {
    pub(super) fn new(sources: &[WeightPart<'_>], shape: [usize; 2], double_quantization: bool) -> Self {
        let mut first_row = 0;
        let mut parts = Vec::new();
        for source in sources {
            let (packed, absmax) = nf4::quantize(&source.values());
            let scales = if double_quantization {
                Scales::Double(DoubleQuantized::new(&absmax))
            } else {
                Scales::Single(absmax)
            };
            parts.push(Part { first_row, rows: source.shape[0], columns: source.shape[1], packed, scales });
            first_row += source.shape[0];
        }
        Quantized { parts, shape }
    }

    pub(super) fn bytes(&self) -> u64 {
        let scales = |part: &Part| match &part.scales {
            Scales::Single(absmax) => absmax.len() * 4,
            Scales::Double(double) => double.codes.len() + double.nested_absmax.len() * 4 + 4,
        };
        self.parts.iter().map(|part| (part.packed.len() + scales(part)) as u64).sum()
    }

    pub(super) fn values(&self) -> Vec<f32> {
        let mut values = Vec::with_capacity(self.shape[0] * self.shape[1]);
        for part in &self.parts {
            let absmax = match &part.scales {
                Scales::Single(absmax) => absmax.clone(),
                Scales::Double(double) => double.absmax(),
            };
            values.extend(nf4::dequantize(&part.packed, &absmax, part.rows * part.columns));
        }
        values
    }

    /// Panel [in][32] of outputs 32·index and following.
    pub(super) fn panel_of_outputs(&self, index: usize, panel: &mut [f32]) {
        let [outputs, inputs] = self.shape;
        let first = index * PANEL;
        let count = PANEL.min(outputs - first);
        let mut rows = vec![0.0; PANEL * inputs];
        for (lane, row) in rows.chunks_exact_mut(inputs.max(1)).take(count).enumerate() {
            self.part_of(first + lane).read(first + lane, 0, row);
        }
        transpose(&rows, inputs, panel);
    }

    /// Panel [out][32] of inputs 32·index and following.
    pub(super) fn panel_of_inputs(&self, index: usize, panel: &mut [f32]) {
        let first = index * PANEL;
        let count = PANEL.min(self.shape[1] - first);
        for part in &self.parts {
            for row in part.first_row..part.first_row + part.rows {
                let target = &mut panel[row * PANEL..(row + 1) * PANEL];
                part.read(row, first, &mut target[..count]);
                target[count..].fill(0.0);
            }
        }
    }

    fn part_of(&self, row: usize) -> &Part {
        let after = self.parts.partition_point(|part| part.first_row <= row);
        &self.parts[after - 1]
    }
}

impl Part {
    /// Values of `row` (of the whole weight) from `column` on.
    fn read(&self, row: usize, column: usize, target: &mut [f32]) {
        let mut at = (row - self.first_row) * self.columns + column;
        let mut done = 0;
        while done < target.len() {
            let count = (BLOCK - at % BLOCK).min(target.len() - done);
            let absmax = self.scale(at / BLOCK);
            decode(&self.packed, at, absmax, &mut target[done..done + count]);
            done += count;
            at += count;
        }
    }

    fn scale(&self, block: usize) -> f32 {
        match &self.scales {
            Scales::Single(absmax) => absmax[block],
            Scales::Double(double) => {
                let value = nf4::dynamic_map()[double.codes[block] as usize];
                value * double.nested_absmax[block / nf4::double::NESTED_BLOCK] + double.offset
            }
        }
    }
}

fn decode(packed: &[u8], at: usize, absmax: f32, target: &mut [f32]) {
    if at.is_multiple_of(2) && target.len().is_multiple_of(2) {
        decode_pairs(&packed[at / 2..][..target.len() / 2], absmax, target);
        return;
    }
    for (i, value) in target.iter_mut().enumerate() {
        let byte = packed[(at + i) / 2];
        *value = CODE[(if (at + i).is_multiple_of(2) { byte >> 4 } else { byte & 15 }) as usize] * absmax;
    }
}

multiversion! {
    fn decode_pairs(packed: &[u8], absmax: f32, target: &mut [f32]) {
        let _ = FMA;
        let table: [f32; 16] = std::array::from_fn(|code| CODE[code] * absmax);
        for (byte, pair) in packed.iter().zip(target.chunks_exact_mut(2)) {
            pair[0] = table[(byte >> 4) as usize];
            pair[1] = table[(byte & 15) as usize];
        }
    }
}

multiversion! {
    /// rows [32][k] to panel [k][32], in squares that stay in registers and first-level cache.
    fn transpose(rows: &[f32], k: usize, panel: &mut [f32]) {
        let _ = FMA;
        const SQUARE: usize = 8;
        let whole = k - k % SQUARE;
        for start in (0..whole).step_by(SQUARE) {
            for lanes in (0..PANEL).step_by(SQUARE) {
                let mut square = [[0.0; SQUARE]; SQUARE];
                for (lane, line) in square.iter_mut().enumerate() {
                    line.copy_from_slice(&rows[(lanes + lane) * k + start..][..SQUARE]);
                }
                for p in 0..SQUARE {
                    for lane in 0..SQUARE {
                        panel[(start + p) * PANEL + lanes + lane] = square[lane][p];
                    }
                }
            }
        }
        for p in whole..k {
            for lane in 0..PANEL {
                panel[p * PANEL + lane] = rows[lane * k + p];
            }
        }
    }
}
