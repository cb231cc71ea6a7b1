//! What a product is asked to do.

use motley_kernels::gelu;

use crate::buffer::View;
use crate::open::Precision;
use crate::weight::Weight;
use crate::{Error, Result};

/// A product with a prepared weight W [out, in].
///
/// On the cpu and on wgpu the bits of an output row depend on its input row and the weight alone, not on the other rows;
/// cuBLASLt chooses its algorithm by the number of rows.
pub struct Linear<'a> {
    /// Activations [rows, in] forward, [rows, out] backward; may be longer.
    pub input: View<'a>,
    pub weight: &'a Weight,
    /// Activations [rows, out] forward, [rows, in] backward; may be longer.
    pub output: View<'a>,
    pub rows: usize,
    pub epilogue: Epilogue,
    pub direction: Direction,
    /// Adds to the output instead of overwriting it; not together with an activation.
    pub accumulate: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// x·Wᵀ
    Forward,
    /// dy·W; no epilogue.
    Backward,
}

/// What follows a forward product, before its output is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epilogue {
    None,
    /// Adds the weight's bias, where it has one.
    Bias,
    /// Adds the bias and applies the activation.
    BiasActivation(gelu::Kind),
}

/// output = alpha·op(left)·op(right) + beta·output, all f32, `batch` times.
pub struct Matmul<'a> {
    /// [m, k], or [k, m] if transposed.
    pub left: Operand<'a>,
    /// [k, n], or [n, k] if transposed.
    pub right: Operand<'a>,
    /// [m, n]; never transposed.
    pub output: Operand<'a>,
    /// m, n, k
    pub shape: [usize; 3],
    pub batch: usize,
    pub alpha: f32,
    /// 0: the output is not read.
    pub beta: f32,
}

/// A matrix of a [`Matmul`].
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    pub view: View<'a>,
    /// Elements from one stored row to the next.
    pub stride: usize,
    /// Elements from one matrix of the batch to the next.
    pub batch_stride: usize,
    pub transposed: bool,
}

impl<'a> Operand<'a> {
    /// One matrix of rows of `stride` elements.
    pub fn rows(view: View<'a>, stride: usize) -> Self {
        Operand { view, stride, batch_stride: 0, transposed: false }
    }

    /// The same memory, read as its transpose.
    pub fn transposed(view: View<'a>, stride: usize) -> Self {
        Operand { view, stride, batch_stride: 0, transposed: true }
    }
}

impl<'a> Linear<'a> {
    /// Input and output cut to what the call needs.
    ///
    /// # Errors
    /// They are shorter.
    pub(crate) fn check(&self, precision: Precision) -> Result<(View<'a>, View<'a>)> {
        let [out, width] = self.weight.shape();
        let (from, to) = match self.direction {
            Direction::Forward => (width, out),
            Direction::Backward => (out, width),
        };
        let input = self.input.first(self.rows * from * precision.bytes(), "input of a product")?;
        let output = self.output.first(self.rows * to * precision.bytes(), "output of a product")?;
        Ok((input, output))
    }
}

impl Matmul<'_> {
    /// # Errors
    /// A matrix that is not inside its buffer, or an output whose rows overlap.
    pub(crate) fn check(&self) -> Result<()> {
        let [m, n, k] = self.shape;
        let stored = |operand: &Operand<'_>, rows, columns| {
            if operand.transposed { (columns, rows) } else { (rows, columns) }
        };
        let all = [
            (&self.left, stored(&self.left, m, k), "left factor"),
            (&self.right, stored(&self.right, k, n), "right factor"),
            (&self.output, (m, n), "output of a product"),
        ];
        for (operand, (rows, columns), what) in all {
            operand.view.first(operand.elements(rows, columns, self.batch).saturating_mul(4), what)?;
        }
        // Rows of the output are written by different threads.
        let (what, wanted, given) = ("elements from row to row of its output", n, self.output.stride);
        if m > 1 && given < wanted {
            return Err(Error::Launch { entry: "product", what, wanted, given });
        }
        Ok(())
    }
}

impl Operand<'_> {
    /// Elements from the first to the last, of `batch` matrices of stored rows and columns; where that is no number
    /// of a `usize`, the largest, which no buffer holds.
    fn elements(&self, rows: usize, columns: usize, batch: usize) -> usize {
        if rows == 0 || columns == 0 || batch == 0 {
            return 0;
        }
        let matrices = (batch - 1).saturating_mul(self.batch_stride);
        matrices.saturating_add((rows - 1).saturating_mul(self.stride)).saturating_add(columns)
    }
}
