//! Products of activations with weights, and of two buffers.
//!
//! ```text
//! weight       columns of the product in panels of 32: panel p holds [k][32] f32, zeros behind the last column
//! task         up to 384 rows (2048 with NF4) times one or more panels
//! micro-kernel up to 12 rows times one panel, all of k: 24 AVX-512 accumulators
//! ```
//!
//! Every element is the sum over k in ascending order, whatever the number of rows, the threads or the place in a
//! batch: a row alone has the bits it has among others. NF4 weights stay in four bits; a panel is dequantized into
//! scratch for each task.

mod avx2;
mod avx512;
mod panels;
mod portable;
mod quantized;

use std::sync::{Arc, OnceLock};

use motley_kernels::{Workers, gelu, simd};

use crate::memory::Ledger;
use crate::{Category, Direction, Epilogue, Error, Linear, Matmul, WeightFormat, WeightSource};
use panels::Panels;
use quantized::Quantized;

/// Columns of a panel: two AVX-512 registers.
const PANEL: usize = 32;
/// Rows of a task: 384 rows of 384 inputs stay in the second-level cache.
const ROWS_A_TASK: usize = 384;
/// With NF4 a panel is dequantized once a task, so tasks are taller.
const ROWS_A_TASK_NF4: usize = 2048;
/// Multiply-adds worth handing to another thread.
const WORK_A_TASK: usize = 1 << 19;

/// A prepared weight.
pub(super) struct Packed {
    shape: [usize; 2],
    data: Data,
    bias: Option<Vec<f32>>,
    ledger: Arc<Ledger>,
    bytes: u64,
}

enum Data {
    /// Panels over `out`, and over `in` once a backward product asks for them.
    Full {
        forward: Panels,
        backward: OnceLock<Panels>,
    },
    Nf4(Quantized),
}

impl Drop for Packed {
    fn drop(&mut self) {
        let backward = match &self.data {
            Data::Full { backward, .. } => backward.get().map_or(0, Panels::bytes),
            Data::Nf4(_) => 0,
        };
        self.ledger.give(self.bytes + backward, Category::Weights);
    }
}

impl Packed {
    pub(super) fn prepare(
        source: &WeightSource<'_>,
        shape: [usize; 2],
        ledger: &Arc<Ledger>,
        workers: &Workers,
    ) -> Result<Self, Error> {
        let data = match source.format {
            WeightFormat::F32 => {
                let values: Vec<f32> = source.parts.iter().flat_map(|part| part.values()).collect();
                let forward = Panels::transposed(&values, shape, workers);
                Data::Full { forward, backward: OnceLock::new() }
            }
            WeightFormat::Nf4 { double_quantization } => {
                Data::Nf4(Quantized::new(source.parts, shape, double_quantization))
            }
        };
        let bias = source.bias.map(<[f32]>::to_vec);
        let bytes = match &data {
            Data::Full { forward, .. } => forward.bytes(),
            Data::Nf4(quantized) => quantized.bytes(),
        };
        let bytes = bytes + bias.as_ref().map_or(0, |bias| bias.len() as u64 * 4);
        ledger.take(bytes, Category::Weights)?;
        Ok(Packed { shape, data, bias, ledger: ledger.clone(), bytes })
    }

    /// [out, in] row-major, dequantized.
    pub(super) fn values(&self) -> Vec<f32> {
        match &self.data {
            Data::Full { forward, .. } => forward.rows_of_transposed(self.shape),
            Data::Nf4(quantized) => quantized.values(),
        }
    }

    pub(super) fn multiply(
        &self,
        call: &Linear<'_>,
        (input, output): (&[f32], &mut [f32]),
        workers: &Workers,
    ) -> Result<(), Error> {
        let [out, inner] = self.shape;
        let (columns, k) = match call.direction {
            Direction::Forward => (out, inner),
            Direction::Backward => (inner, out),
        };
        let shape = Shape { rows: call.rows, columns, k };
        let (bias, activation) = match (call.direction, call.epilogue) {
            (Direction::Backward, _) | (_, Epilogue::None) => (None, None),
            (_, Epilogue::Bias) => (self.bias.as_deref(), None),
            (_, Epilogue::BiasGelu(kind)) => (self.bias.as_deref(), Some(kind)),
        };
        let finish = Finish { bias, activation, accumulate: call.accumulate };
        match &self.data {
            Data::Full { forward, backward } => {
                let panels = match call.direction {
                    Direction::Forward => forward,
                    Direction::Backward => {
                        if backward.get().is_none() {
                            self.make_backward(forward, backward, workers)?;
                        }
                        backward.get().expect("made just above")
                    }
                };
                let panel = |index: usize, _: &mut Vec<f32>| panels.panel(index).as_ptr();
                drive(&shape, ROWS_A_TASK, (input, output), &finish, (workers, &panel));
            }
            Data::Nf4(quantized) => {
                let panel = |index: usize, scratch: &mut Vec<f32>| {
                    scratch.resize(k * PANEL, 0.0);
                    match call.direction {
                        Direction::Forward => quantized.panel_of_outputs(index, scratch),
                        Direction::Backward => quantized.panel_of_inputs(index, scratch),
                    }
                    scratch.as_ptr()
                };
                drive(&shape, ROWS_A_TASK_NF4, (input, output), &finish, (workers, &panel));
            }
        }
        Ok(())
    }

    fn make_backward(
        &self,
        forward: &Panels,
        backward: &OnceLock<Panels>,
        workers: &Workers,
    ) -> Result<(), Error> {
        let [out, inner] = self.shape;
        self.ledger.take(Panels::bytes_of(inner, out), Category::Weights)?;
        let panels = Panels::straight(&forward.rows_of_transposed(self.shape), [out, inner], workers);
        if backward.set(panels).is_err() {
            self.ledger.give(Panels::bytes_of(inner, out), Category::Weights);
        }
        Ok(())
    }
}

struct Shape {
    rows: usize,
    columns: usize,
    k: usize,
}

/// What happens to sums before they are stored.
struct Finish<'a> {
    bias: Option<&'a [f32]>,
    activation: Option<gelu::Kind>,
    accumulate: bool,
}

/// The output, written by tasks in disjoint rows and columns.
struct Output(*mut f32);
// SAFETY: tasks write disjoint tiles.
unsafe impl Sync for Output {}

/// Cuts the product into tasks. `panel` gives the address of k·32 floats, valid until its scratch is used again.
fn drive(
    shape: &Shape,
    rows_a_task: usize,
    (input, output): (&[f32], &mut [f32]),
    finish: &Finish<'_>,
    (workers, panel): (&Workers, &(dyn Fn(usize, &mut Vec<f32>) -> *const f32 + Sync)),
) {
    if shape.rows == 0 || shape.columns == 0 {
        return;
    }
    assert!(input.len() >= shape.rows * shape.k && output.len() >= shape.rows * shape.columns);
    let panels = shape.columns.div_ceil(PANEL);
    let rows_each = shape.rows.min(rows_a_task);
    let panels_each = (WORK_A_TASK / (rows_each * shape.k * PANEL).max(1)).clamp(1, panels);
    let groups = panels.div_ceil(panels_each);
    let chunks = shape.rows.div_ceil(rows_a_task);
    let target = Output(output.as_mut_ptr());
    workers.each(chunks * groups, |task| {
        let target = &target;
        let (chunk, group) = (task / groups, task % groups);
        let first = chunk * rows_a_task;
        let rows = rows_a_task.min(shape.rows - first);
        let mut scratch = Vec::new();
        for index in group * panels_each..panels.min((group + 1) * panels_each) {
            let tile = Tile {
                input: input[first * shape.k..].as_ptr(),
                // SAFETY: inside the output by the assertion above.
                output: unsafe { target.0.add(first * shape.columns + index * PANEL) },
                rows,
                shape,
                columns: PANEL.min(shape.columns - index * PANEL),
                bias: finish.bias.map(|bias| &bias[index * PANEL..shape.columns.min((index + 1) * PANEL)]),
            };
            multiply_panel(&tile, panel(index, &mut scratch), finish);
        }
    });
}

/// Rows of one task times one panel.
struct Tile<'a> {
    input: *const f32,
    output: *mut f32,
    rows: usize,
    shape: &'a Shape,
    /// At most [`PANEL`].
    columns: usize,
    bias: Option<&'a [f32]>,
}

/// One call of a micro-kernel.
#[derive(Clone, Copy)]
struct Block {
    input: *const f32,
    /// Elements from one row of the input to the next; also the length of the sum.
    k: usize,
    panel: *const f32,
    output: *mut f32,
    output_stride: usize,
    rows: usize,
    columns: usize,
    accumulate: bool,
}

fn multiply_panel(tile: &Tile<'_>, panel: *const f32, finish: &Finish<'_>) {
    let level = simd::level();
    let rows_max = match level {
        simd::Level::Avx512 => avx512::ROWS,
        simd::Level::Avx2 => avx2::ROWS,
        simd::Level::Portable => portable::ROWS,
    };
    // Rows are spread evenly: 14 rows are 7 and 7, not 12 and 2.
    let blocks = tile.rows.div_ceil(rows_max);
    let mut start = 0;
    for block in 0..blocks {
        let rows = (tile.rows - start).div_ceil(blocks - block);
        let call = Block {
            // SAFETY: row `start` of the tile.
            input: unsafe { tile.input.add(start * tile.shape.k) },
            k: tile.shape.k,
            panel,
            // SAFETY: row `start` of the tile.
            output: unsafe { tile.output.add(start * tile.shape.columns) },
            output_stride: tile.shape.columns,
            rows,
            columns: tile.columns,
            accumulate: finish.accumulate,
        };
        // SAFETY: pointers reach over the block's rows and columns; the level was detected.
        unsafe {
            match level {
                simd::Level::Avx512 => avx512::multiply(&call),
                simd::Level::Avx2 => avx2::multiply(&call),
                simd::Level::Portable => portable::multiply(&call),
            }
            finish_block(&call, tile.bias, finish.activation);
        }
        start += rows;
    }
}

/// # Safety
/// `call.output` reaches over the block's rows and columns.
unsafe fn finish_block(call: &Block, bias: Option<&[f32]>, activation: Option<gelu::Kind>) {
    if bias.is_none() && activation.is_none() {
        return;
    }
    for row in 0..call.rows {
        // SAFETY: by the caller's promise.
        let row = unsafe {
            std::slice::from_raw_parts_mut(call.output.add(row * call.output_stride), call.columns)
        };
        if let Some(bias) = bias {
            row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
        }
        if let Some(kind) = activation {
            gelu::in_place(row, kind as u32);
        }
    }
}

/// c = alpha·op(a)·op(b) + beta·c
pub(super) fn multiply_buffers(call: &Matmul<'_>, a: &[f32], b: &[f32], c: &mut [f32], workers: &Workers) {
    let (m, n, k) = (call.m, call.n, call.k);
    let panels = if call.b_transposed {
        Panels::transposed(&b[..n * k], [n, k], workers)
    } else {
        Panels::straight(&b[..n * k], [k, n], workers)
    };
    let transposed: Vec<f32>;
    let a = if call.a_transposed {
        transposed = (0..m).flat_map(|row| (0..k).map(move |p| a[p * m + row])).collect();
        &transposed
    } else {
        a
    };
    let scaled: Vec<f32>;
    let a = if call.alpha == 1.0 {
        a
    } else {
        scaled = a[..m * k].iter().map(|value| value * call.alpha).collect();
        &scaled
    };
    if call.beta != 0.0 && call.beta != 1.0 {
        c[..m * n].iter_mut().for_each(|value| *value *= call.beta);
    }
    let finish = Finish { bias: None, activation: None, accumulate: call.beta != 0.0 };
    let panel = |index: usize, _: &mut Vec<f32>| panels.panel(index).as_ptr();
    drive(&Shape { rows: m, columns: n, k }, ROWS_A_TASK, (a, c), &finish, (workers, &panel));
}

#[cfg(test)]
mod tests;
