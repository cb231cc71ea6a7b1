//! Tensors on a backend: dense f32 matrices with their sizes, and short ways to make, launch and read.

use std::ops::Range;
use std::sync::Arc;

use motley_backends::{Backend, Buffer, Category, Launch, Precision, View};
use motley_kernels::{Arguments, Entry, elementwise, sum_squares};

use crate::{Error, Result};

/// Most elements of a tensor: kernels count in 32 bits.
pub(crate) const ELEMENTS_MAX: usize = u32::MAX as usize;

/// Rows of a table that are brought to a device at once; a multiple of four, so that slices start aligned.
const ROWS_A_SLICE: usize = 4096;

/// A backend, shared.
#[derive(Clone)]
pub(crate) struct Device {
    pub(crate) backend: Arc<dyn Backend>,
}

/// A dense matrix [rows, width] on a device. Clones share the memory.
#[derive(Clone)]
pub(crate) struct Tensor {
    buffer: Arc<Buffer>,
    pub(crate) rows: usize,
    pub(crate) width: usize,
    /// What the elements are: the device's activations, or f32 whatever those are.
    precision: Precision,
}

impl Tensor {
    /// The whole of it.
    pub(crate) fn bound(&self) -> View<'_> {
        self.buffer.all()
    }

    pub(crate) fn count(&self) -> usize {
        self.rows * self.width
    }

    /// Whether writing here is seen by nobody else.
    pub(crate) fn is_unique(&self) -> bool {
        Arc::strong_count(&self.buffer) == 1
    }
}

/// Bytes of `rows` × `width` elements.
///
/// # Errors
/// More elements than a kernel can count.
fn bytes(rows: usize, width: usize, precision: Precision) -> Result<usize> {
    let elements = rows.checked_mul(width).filter(|elements| *elements <= ELEMENTS_MAX);
    elements.map(|elements| elements * precision.bytes()).ok_or(Error::TooManyElements { rows, width })
}

/// `count` elements of a flat f32 buffer, from `first` on.
pub(crate) fn elements(buffer: &Buffer, first: usize, count: usize) -> View<'_> {
    buffer.part(first * 4, count * 4)
}

impl Device {
    /// What this device keeps activations in.
    pub(crate) fn precision(&self) -> Precision {
        self.backend.info().precision
    }

    /// A flat f32 buffer of `rows` × `width` unspecified elements.
    pub(crate) fn unfilled(&self, rows: usize, width: usize, category: Category) -> Result<Buffer> {
        Ok(self.backend.allocate_unfilled(bytes(rows, width, Precision::F32)?, category)?)
    }

    /// An activation; contents are unspecified.
    pub(crate) fn activation(&self, rows: usize, width: usize) -> Result<Tensor> {
        let precision = self.precision();
        let bytes = bytes(rows, width, precision)?;
        let buffer = Arc::new(self.backend.allocate_unfilled(bytes, Category::Activations)?);
        Ok(Tensor { buffer, rows, width, precision })
    }

    /// An activation of zeros.
    pub(crate) fn zero_activation(&self, rows: usize, width: usize) -> Result<Tensor> {
        let precision = self.precision();
        let bytes = bytes(rows, width, precision)?;
        let buffer = Arc::new(self.backend.allocate(bytes, Category::Activations)?);
        Ok(Tensor { buffer, rows, width, precision })
    }

    /// A value kept in f32 on every device: statistics, low-rank activations, all behind the pooling. Contents are
    /// unspecified.
    pub(crate) fn wide(&self, rows: usize, width: usize) -> Result<Tensor> {
        let buffer = Arc::new(self.unfilled(rows, width, Category::Activations)?);
        Ok(Tensor { buffer, rows, width, precision: Precision::F32 })
    }

    /// A flat buffer of zeros.
    pub(crate) fn zeros(&self, count: usize, category: Category) -> Result<Buffer> {
        Ok(self.backend.allocate(bytes(count, 1, Precision::F32)?, category)?)
    }

    /// Writes `value` into the first `count` elements of f32.
    pub(crate) fn fill(&self, target: View<'_>, count: usize, value: f32) -> Result<()> {
        self.bound_parts(count).try_for_each(|part| {
            let args = elementwise::Args { count: part.len() as u32, alpha: value };
            let target = elements(target.buffer, target.offset / 4 + part.start, part.len());
            self.launch(&elementwise::FILL, &args, &[target])
        })
    }

    /// `count` elements of a flat f32 buffer in parts that one launch takes, of whole pieces of
    /// [`sum_squares`]; one part where launches take all.
    pub(crate) fn bound_parts(&self, count: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let whole = |bytes: u64| (bytes as usize / 4 / sum_squares::PIECE).max(1) * sum_squares::PIECE;
        let most = self.backend.binding_limit().map_or(usize::MAX, whole);
        (0..count).step_by(most).map(move |first| first..count.min(first.saturating_add(most)))
    }

    /// y += x, both activations.
    pub(crate) fn add(&self, x: &Tensor, y: &Tensor) -> Result<()> {
        assert!(
            x.precision == self.precision() && y.precision == x.precision && x.count() == y.count(),
            "activations of one shape are added"
        );
        let args = elementwise::Args { count: y.count() as u32, alpha: 1.0 };
        self.launch(&elementwise::ADD, &args, &[x.bound(), y.bound()])
    }

    /// Rows of a table that one binding holds, a multiple of four.
    pub(crate) fn table_rows_max(&self, width: usize) -> usize {
        let row = width * self.precision().bytes();
        let rows = self.backend.binding_limit().map_or(ELEMENTS_MAX, |bytes| bytes as usize / row);
        (rows & !3).max(4)
    }

    /// A table [rows, width] in the precision of activations. `values(first, count)` gives so many of its rows, a
    /// slice at a time: a table of words may have gigabytes.
    pub(crate) fn upload_table(
        &self,
        rows: usize,
        width: usize,
        values: impl Fn(usize, usize) -> Vec<f32>,
    ) -> Result<Buffer> {
        let buffer = self.blank_table(rows, width)?;
        for first in (0..rows).step_by(ROWS_A_SLICE) {
            let values = values(first, ROWS_A_SLICE.min(rows - first));
            let target = buffer.at(first * width * self.precision().bytes());
            match self.precision() {
                Precision::F32 => self.backend.upload(bytemuck::cast_slice(&values), target)?,
                Precision::Bf16 => {
                    let rounded: Vec<half::bf16> = values.iter().map(|v| half::bf16::from_f32(*v)).collect();
                    self.backend.upload(bytemuck::cast_slice(&rounded), target)?;
                }
            }
        }
        Ok(buffer)
    }

    /// As [`Device::upload_table`], with unspecified values.
    pub(crate) fn blank_table(&self, rows: usize, width: usize) -> Result<Buffer> {
        let bytes = bytes(rows, width, self.precision())?;
        Ok(self.backend.allocate_unfilled(bytes, Category::Weights)?)
    }

    pub(crate) fn upload_f32(&self, values: &[f32], category: Category) -> Result<Buffer> {
        let buffer = self.unfilled(values.len(), 1, category)?;
        self.backend.upload(bytemuck::cast_slice(values), buffer.all())?;
        Ok(buffer)
    }

    pub(crate) fn upload_u32(&self, values: &[u32], category: Category) -> Result<Buffer> {
        let buffer = self.unfilled(values.len(), 1, category)?;
        self.backend.upload(bytemuck::cast_slice(values), buffer.all())?;
        Ok(buffer)
    }

    /// `values` as an f32 matrix of rows of `width`.
    pub(crate) fn upload_tensor(&self, values: &[f32], width: usize, category: Category) -> Result<Tensor> {
        let buffer = Arc::new(self.upload_f32(values, category)?);
        Ok(Tensor { buffer, rows: values.len() / width, width, precision: Precision::F32 })
    }

    pub(crate) fn download(&self, source: View<'_>, count: usize) -> Result<Vec<f32>> {
        let mut values = vec![0.0f32; count];
        self.backend.download(source, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    pub(crate) fn launch<A: Arguments>(
        &self,
        entry: &'static Entry,
        arguments: &A,
        bindings: &[View<'_>],
    ) -> Result<()> {
        Ok(self.backend.launch(&Launch::new(entry, arguments, bindings))?)
    }

    /// Runs `work` on the device's threads.
    pub(crate) fn in_pool<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let (mut work, mut result) = (Some(work), None);
        self.backend.run_in_pool(&mut || {
            if let Some(work) = work.take() {
                result = Some(work());
            }
        });
        result.expect("backends run the work before they return")
    }
}

#[cfg(test)]
mod tests {
    use motley_backends::{DeviceRequest, open};

    use super::*;

    #[test]
    fn more_elements_than_32_bits_count_are_refused() {
        let backend =
            open(&DeviceRequest { backend: "null".to_owned(), ..DeviceRequest::default() }).unwrap();
        let device = Device { backend };
        assert!(device.activation(ELEMENTS_MAX, 1).is_ok());
        for (rows, width) in [(1 << 16, 1 << 16), (usize::MAX, 2), (ELEMENTS_MAX + 1, 1)] {
            let error = device.activation(rows, width).map(|_| ()).unwrap_err();
            assert!(matches!(error, Error::TooManyElements { .. }), "{error}");
            assert!(error.to_string().contains("4294967295"), "{error}");
        }
        assert!(device.zeros(ELEMENTS_MAX + 1, Category::Optimizer).is_err());
    }
}
