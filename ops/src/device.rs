//! Tensors on a backend: dense f32 matrices with their sizes, and short ways to make, launch and read.

use std::sync::Arc;

use motley_backends::{Backend, Buffer, Category, Launch, View};
use motley_kernels::{Arguments, Entry, elementwise};

use crate::Result;

/// A backend, shared.
#[derive(Clone)]
pub(crate) struct Device {
    pub(crate) backend: Arc<dyn Backend>,
}

/// A dense f32 matrix [rows, width] on a device. Clones share the memory.
#[derive(Clone)]
pub(crate) struct Tensor {
    buffer: Arc<Buffer>,
    pub(crate) rows: usize,
    pub(crate) width: usize,
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

/// From element `index` of a flat f32 buffer on.
pub(crate) fn from_element(buffer: &Buffer, index: usize) -> View<'_> {
    buffer.at(index * 4)
}

impl Device {
    /// Contents are unspecified.
    pub(crate) fn tensor(&self, rows: usize, width: usize, category: Category) -> Result<Tensor> {
        let buffer = Arc::new(self.backend.allocate_unfilled(rows * width * 4, category)?);
        Ok(Tensor { buffer, rows, width })
    }

    pub(crate) fn activation(&self, rows: usize, width: usize) -> Result<Tensor> {
        self.tensor(rows, width, Category::Activations)
    }

    /// A flat buffer of zeros.
    pub(crate) fn zeros(&self, count: usize, category: Category) -> Result<Buffer> {
        Ok(self.backend.allocate(count * 4, category)?)
    }

    pub(crate) fn fill(&self, target: View<'_>, count: usize, value: f32) -> Result<()> {
        let args = elementwise::Args { count: count as u32, alpha: value };
        self.launch(&elementwise::FILL, &args, &[target])
    }

    /// y += alpha·x
    pub(crate) fn add(&self, alpha: f32, x: View<'_>, y: View<'_>, count: usize) -> Result<()> {
        let args = elementwise::Args { count: count as u32, alpha };
        self.launch(&elementwise::ADD, &args, &[x, y])
    }

    pub(crate) fn upload_f32(&self, values: &[f32], category: Category) -> Result<Buffer> {
        let buffer = self.backend.allocate_unfilled(values.len() * 4, category)?;
        self.backend.upload(bytemuck::cast_slice(values), buffer.all())?;
        Ok(buffer)
    }

    pub(crate) fn upload_u32(&self, values: &[u32], category: Category) -> Result<Buffer> {
        let buffer = self.backend.allocate_unfilled(values.len() * 4, category)?;
        self.backend.upload(bytemuck::cast_slice(values), buffer.all())?;
        Ok(buffer)
    }

    /// `values` as a matrix of rows of `width`.
    pub(crate) fn upload_tensor(&self, values: &[f32], width: usize, category: Category) -> Result<Tensor> {
        let buffer = Arc::new(self.upload_f32(values, category)?);
        Ok(Tensor { buffer, rows: values.len() / width, width })
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
