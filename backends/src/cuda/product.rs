//! Products on a CUDA device: by its library where it has one, else by the kernels of `product.cu`.

use motley_kernels::{Grid, gelu};

use super::driver::{Driver, Enqueue, Symbol};
use crate::Result;
use crate::open::Precision;

/// output [m, n] = alpha·left·right + beta·output, then bias and activation; addresses on the device, row-major.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    pub left: Factor,
    pub right: Factor,
    pub output: u64,
    pub output_stride: usize,
    pub output_batch: usize,
    /// [n], of the same precision.
    pub bias: Option<u64>,
    pub activation: Option<gelu::Kind>,
    /// m, n, k
    pub shape: [usize; 3],
    pub batch: usize,
    pub alpha: f32,
    pub beta: f32,
    /// Of all matrices; sums are f32.
    pub precision: Precision,
    /// Whether the matrices are what the device keeps activations in (a product of losses is f32 everywhere).
    pub of_activations: bool,
}

/// [m, k] or [k, n] as it lies, or (transposed) [k, m] or [n, k].
#[derive(Debug, Clone, Copy)]
pub(super) struct Factor {
    pub address: u64,
    pub stride: usize,
    pub batch: usize,
    pub transposed: bool,
}

/// Half the second-level cache of the devices that this is tuned on (Hopper: 50 MB).
const CACHED_BYTES: usize = 24 << 20;

pub(super) const SOURCE: &str = "product";

/// As in `product.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Args {
    rows: u32,
    columns: u32,
    depth: u32,
    left_row: u32,
    left_depth: u32,
    right_depth: u32,
    right_column: u32,
    output_row: u32,
    left_batch: u32,
    right_batch: u32,
    output_batch: u32,
    alpha: f32,
    beta: f32,
    has_bias: u32,
    kind: u32,
}

impl Product {
    pub fn run(&self, driver: &dyn Driver) -> Result<()> {
        let [m, n, k] = self.shape;
        if m == 0 || n == 0 || self.batch == 0 || driver.product(self)? {
            return Ok(());
        }
        // A library that lacks the activation may still have the product.
        if let Some(kind) = self.activation
            && driver.product(&Product {
                activation: None,
                shape: [m.min(self.rows_in_cache()), n, k],
                ..*self
            })?
        {
            return self.run_with_activation(kind, driver);
        }
        let (name, grid) = self.function();
        // Where there is no bias its address is not read.
        let addresses =
            [self.left.address, self.right.address, self.output, self.bias.unwrap_or(self.output)];
        let args = self.args();
        driver.launch(&Enqueue {
            symbol: Symbol { source: SOURCE, name },
            grid,
            addresses: &addresses,
            arguments: bytemuck::bytes_of(&args),
        })
    }

    /// Rows whose output stays in the second-level cache until the activation has read it.
    fn rows_in_cache(&self) -> usize {
        let row_bytes = self.shape[1] * self.precision.bytes();
        (CACHED_BYTES / row_bytes.max(1)).next_multiple_of(256)
    }

    /// Products of some rows, each followed by their activation in place. The first product is done.
    fn run_with_activation(&self, kind: gelu::Kind, driver: &dyn Driver) -> Result<()> {
        let [m, n, k] = self.shape;
        let step = self.rows_in_cache();
        for first in (0..m).step_by(step) {
            let rows = step.min(m - first);
            let bytes = self.precision.bytes();
            let mut left = self.left;
            left.address += (first * left.stride * bytes) as u64;
            let output = self.output + (first * self.output_stride * bytes) as u64;
            let part = Product { left, output, activation: None, shape: [rows, n, k], ..*self };
            if first > 0 {
                part.run(driver)?;
            }
            let args = gelu::Args { count: (rows * n) as u32, kind: kind as u32 };
            driver.launch(&Enqueue {
                symbol: Symbol { source: gelu::KERNEL.name, name: "gelu_forward" },
                grid: (gelu::FORWARD.cuda)(bytemuck::bytes_of(&args)),
                addresses: &[output, output],
                arguments: bytemuck::bytes_of(&args),
            })?;
        }
        Ok(())
    }

    /// The function of `product.cu` that can do it, the fastest first, and its blocks.
    fn function(&self) -> (&'static str, Grid) {
        let [m, n, k] = self.shape.map(|size| size as u32);
        let in_eights =
            |factor: &Factor| factor.stride.is_multiple_of(8) && factor.address.is_multiple_of(16);
        let tensor = self.precision == Precision::Bf16
            && self.batch == 1
            && !self.left.transposed
            && k.is_multiple_of(8)
            && n.is_multiple_of(8)
            && in_eights(&self.left)
            && in_eights(&self.right);
        if tensor {
            let left = 128 * 40;
            let right = if self.right.transposed { 128 * 40 } else { 32 * 136 };
            let name = if self.right.transposed { "product_tensor_nt" } else { "product_tensor_nn" };
            let blocks = m.div_ceil(128) * n.div_ceil(128);
            return (name, Grid { shared_bytes: 3 * (left + right) * 2, ..Grid::new(blocks, 256) });
        }
        let name = if self.of_activations { "product_activation" } else { "product_f32" };
        (name, Grid::new(m.div_ceil(64) * n.div_ceil(64) * self.batch as u32, 256))
    }

    pub fn args(&self) -> Args {
        let [rows, columns, depth] = self.shape.map(|size| size as u32);
        let (left, right) = (self.left.stride as u32, self.right.stride as u32);
        Args {
            rows,
            columns,
            depth,
            left_row: if self.left.transposed { 1 } else { left },
            left_depth: if self.left.transposed { left } else { 1 },
            right_depth: if self.right.transposed { 1 } else { right },
            right_column: if self.right.transposed { right } else { 1 },
            output_row: self.output_stride as u32,
            left_batch: self.left.batch as u32,
            right_batch: self.right.batch as u32,
            output_batch: self.output_batch as u32,
            alpha: self.alpha,
            beta: self.beta,
            has_bias: u32::from(self.bias.is_some()),
            kind: self.activation.map_or(3, |kind| kind as u32),
        }
    }
}
