//! Products of two buffers: the right factor becomes panels at each use, a transposed left factor is turned over
//! first, and then they are products like those with weights.

use motley_kernels::{Slice, Workers};

use super::gemm::{self, Finish, Product};
use super::panels::Panels;
use super::tile::{PANEL, PanelRow};
use crate::product::{Matmul, Operand};

/// Floats of a claimed slice.
pub(super) fn floats<'a>(slice: Slice<'a>) -> &'a [f32] {
    match slice {
        Slice::Read(bytes) => bytemuck::cast_slice(bytes),
        Slice::Write(bytes) => bytemuck::cast_slice(bytes),
    }
}

/// Floats of a slice that was claimed for writing.
pub(super) fn floats_mut<'a>(slice: Slice<'a>) -> &'a mut [f32] {
    match slice {
        Slice::Write(bytes) => bytemuck::cast_slice_mut(bytes),
        Slice::Read(_) => panic!("outputs are claimed for writing"),
    }
}

/// A right factor as it lies in its buffer.
struct Stored<'a> {
    data: &'a [f32],
    operand: Operand<'a>,
    columns: usize,
    depth: usize,
}

impl Panels for Stored<'_> {
    fn panel<'s>(&'s self, index: usize, scratch: &'s mut Vec<PanelRow>) -> &'s [PanelRow] {
        scratch.resize(self.depth.max(scratch.len()), PanelRow::ZERO);
        let scratch = &mut scratch[..self.depth];
        let first = index * PANEL;
        let count = PANEL.min(self.columns - first);
        if count < PANEL {
            scratch.fill(PanelRow::ZERO);
        }
        if self.operand.transposed {
            for j in 0..count {
                let row = &self.data[(first + j) * self.operand.stride..][..self.depth];
                for (target, value) in scratch.iter_mut().zip(row) {
                    target.0[j] = *value;
                }
            }
        } else {
            for (k, target) in scratch.iter_mut().enumerate() {
                let row = &self.data[k * self.operand.stride + first..][..count];
                target.0[..count].copy_from_slice(row);
            }
        }
        scratch
    }

    fn built(&self) -> bool {
        true
    }
}

/// Computes `call` on memory that was checked and claimed.
pub(super) fn run(call: &Matmul<'_>, slices: Vec<Slice<'_>>, workers: &Workers) {
    let mut slices = slices.into_iter();
    let mut next = || slices.next().expect("three operands were claimed");
    let (left, right, output) = (floats(next()), floats(next()), floats_mut(next()));
    let [m, n, k] = call.shape;
    let mut turned = vec![];
    for i in 0..call.batch {
        let left = &left[(i * call.left.batch_stride).min(left.len())..];
        let (left, left_stride) = if call.left.transposed {
            turn_over(left, call.left.stride, [m, k], &mut turned);
            (turned.as_slice(), k)
        } else {
            (left, call.left.stride)
        };
        let data = &right[(i * call.right.batch_stride).min(right.len())..];
        let right = Stored { data, operand: call.right, columns: n, depth: k };
        let product = Product {
            rows: m,
            columns: n,
            depth: k,
            left,
            left_stride,
            right: &right,
            output_stride: call.output.stride,
            finish: Finish { alpha: call.alpha, beta: call.beta, ..Finish::PLAIN },
        };
        gemm::run(&product, &mut output[i * call.output.batch_stride..], workers);
    }
}

/// Stored [k, m] to [m, k].
fn turn_over(stored: &[f32], stride: usize, [m, k]: [usize; 2], out: &mut Vec<f32>) {
    out.resize(m * k, 0.0);
    for t in 0..k {
        for (i, value) in stored[t * stride..][..m].iter().enumerate() {
            out[i * k + t] = *value;
        }
    }
}
