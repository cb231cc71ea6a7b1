//! Frozen matrices on a CUDA device: in the precision of activations, or in NF4 until the moment of the product.

use std::sync::Arc;

use motley_kernels::nf4::{self, DoubleQuantized, dynamic_map};
use motley_kernels::{Grid, Workers};

use super::driver::{Enqueue, Symbol};
use super::product::{self, Product};
use super::storage::{Memory, Storage};
use crate::memory::Category;
use crate::open::Precision;
use crate::weight::{WeightFormat, WeightSource};
use crate::{Error, Result};

/// W [out, in], row-major.
pub(super) struct CudaWeight {
    values: Values,
    /// In the precision of activations.
    pub bias: Option<Storage>,
    count: usize,
}

enum Values {
    Plain(Storage),
    Nf4(Vec<Part>),
}

/// A separately quantized part.
struct Part {
    first: usize,
    count: usize,
    packed: Storage,
    scales: Scales,
}

enum Scales {
    Single(Storage),
    Double { codes: Storage, nested_absmax: Storage, offset: f32 },
}

/// As in `product.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Nf4Args {
    product: product::Args,
    offset: f32,
}

/// As in `product.cu`.
const COLUMNS_A_BLOCK: usize = 16;

/// Blocks of NF4 that one thread quantizes at a time.
const BLOCKS_A_TASK: usize = 1024;

impl CudaWeight {
    pub fn new(
        memory: &Arc<Memory>,
        source: &WeightSource<'_>,
        precision: Precision,
        workers: &Workers,
    ) -> Result<Self> {
        let [out, width] = source.shape()?;
        let hold = |bytes: &[u8]| memory.holding(bytes, Category::Weights);
        let bias = source.bias.map(|bias| hold(&rounded(bias, precision))).transpose()?;
        let values = match source.format {
            WeightFormat::F32 => {
                let mut bytes = Vec::with_capacity(out * width * precision.bytes());
                for part in source.parts {
                    bytes.extend(rounded(&part.values(), precision));
                }
                Values::Plain(hold(&bytes)?)
            }
            WeightFormat::Nf4 { double_quantization } => {
                let (mut parts, mut first) = (Vec::new(), 0);
                for (index, part) in source.parts.iter().enumerate() {
                    let values = part.values();
                    if let Some(element) = values.iter().position(|value| !value.is_finite()) {
                        return Err(Error::NonFinite { part: index, element, value: values[element] });
                    }
                    let (packed, absmax) = quantize(&values, workers);
                    let scales = if double_quantization {
                        let double = DoubleQuantized::new(&absmax);
                        let nested_absmax = hold(bytemuck::cast_slice(&double.nested_absmax))?;
                        Scales::Double { codes: hold(&double.codes)?, nested_absmax, offset: double.offset }
                    } else {
                        Scales::Single(hold(bytemuck::cast_slice(&absmax))?)
                    };
                    parts.push(Part { first, count: values.len(), packed: hold(&packed)?, scales });
                    first += values.len();
                }
                Values::Nf4(parts)
            }
        };
        Ok(CudaWeight { values, bias, count: out * width })
    }

    /// The matrix in the precision of activations: where it lies, or dequantized to memory that the caller holds until
    /// it has asked for the product.
    pub fn ready(
        &self,
        memory: &Arc<Memory>,
        precision: Precision,
        map: &Storage,
    ) -> Result<(u64, Option<Storage>)> {
        let parts = match &self.values {
            Values::Plain(storage) => return Ok((storage.address, None)),
            Values::Nf4(parts) => parts,
        };
        let target = memory.allocate(self.count * precision.bytes(), Category::Workspace)?;
        for part in parts {
            let out = target.address + (part.first * precision.bytes()) as u64;
            let grid = Grid::each((part.count as u32).div_ceil(8));
            let count = part.count as u32;
            let launch = |name, addresses: &[u64], arguments: &[u8]| {
                let symbol = Symbol { source: nf4::KERNEL.name, name };
                memory.driver.launch(&Enqueue { symbol, grid, addresses, arguments })
            };
            match &part.scales {
                Scales::Single(absmax) => launch(
                    "nf4_dequantize",
                    &[part.packed.address, absmax.address, out],
                    bytemuck::bytes_of(&nf4::Args { count }),
                )?,
                Scales::Double { codes, nested_absmax, offset } => launch(
                    "nf4_dequantize_double",
                    &[part.packed.address, codes.address, nested_absmax.address, map.address, out],
                    bytemuck::bytes_of(&nf4::DoubleArgs { count, offset: *offset }),
                )?,
            }
        }
        Ok((target.address, Some(target)))
    }

    /// Computes the forward product with codes that are decoded where they are multiplied, if there are so few rows that
    /// writing the decoded weight and reading it again would take longer than all the rest.
    pub fn multiply_few_rows(&self, memory: &Memory, product: &Product, map: &Storage) -> Result<bool> {
        let Values::Nf4(parts) = &self.values else { return Ok(false) };
        let ([rows, _, width], left, bytes) = (product.shape, product.left, product.precision.bytes());
        let few = match product.precision {
            Precision::F32 => 8,
            Precision::Bf16 => 32,
        };
        // A row is whole blocks, and 16 bytes of activations are read at a time.
        let fits = width > 0 && width.is_multiple_of(nf4::BLOCK) && product.right.transposed;
        let is_aligned = left.address.is_multiple_of(16) && (left.stride * bytes).is_multiple_of(16);
        if rows == 0 || rows > few || !fits || !is_aligned {
            return Ok(false);
        }
        for part in parts {
            let (first, columns) = (part.first / width, part.count / width);
            let place = |address: u64| address + (first * bytes) as u64;
            let output = place(product.output);
            // Where there is no bias its address is not read.
            let bias = product.bias.map_or(output, place);
            let part_of = Product { shape: [rows, columns, width], ..*product };
            let launch = |name, addresses: &[u64], offset| {
                let symbol = Symbol { source: product::SOURCE, name };
                let grid = Grid::new(columns.div_ceil(COLUMNS_A_BLOCK) as u32, 256);
                let args = Nf4Args { product: part_of.args(), offset };
                let arguments = bytemuck::bytes_of(&args);
                memory.driver.launch(&Enqueue { symbol, grid, addresses, arguments })
            };
            let packed = part.packed.address;
            match &part.scales {
                Scales::Single(absmax) => {
                    launch("product_nf4", &[left.address, packed, absmax.address, output, bias], 0.0)?
                }
                Scales::Double { codes, nested_absmax, offset } => launch(
                    "product_nf4_double",
                    &[left.address, packed, codes.address, nested_absmax.address, map.address, output, bias],
                    *offset,
                )?,
            }
        }
        Ok(true)
    }

    /// The values [out, in]; of NF4 exactly those that the codes stand for.
    pub fn host_values(&self, memory: &Memory, precision: Precision) -> Result<Vec<f32>> {
        match &self.values {
            Values::Plain(storage) => {
                let bytes = memory.host(storage)?;
                Ok(match precision {
                    Precision::F32 => bytemuck::pod_collect_to_vec(&bytes),
                    Precision::Bf16 => {
                        let pairs = bytes.chunks_exact(2);
                        pairs.map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
                    }
                })
            }
            Values::Nf4(parts) => {
                let mut values = Vec::with_capacity(self.count);
                for part in parts {
                    let absmax = match &part.scales {
                        Scales::Single(absmax) => bytemuck::pod_collect_to_vec(&memory.host(absmax)?),
                        Scales::Double { codes, nested_absmax, offset } => DoubleQuantized {
                            codes: memory.host(codes)?,
                            nested_absmax: bytemuck::pod_collect_to_vec(&memory.host(nested_absmax)?),
                            offset: *offset,
                        }
                        .absmax(),
                    };
                    values.extend(nf4::dequantize(&memory.host(&part.packed)?, &absmax, part.count));
                }
                Ok(values)
            }
        }
    }
}

/// The table that [`CudaWeight::ready`] reads.
pub(super) fn scale_map(memory: &Arc<Memory>) -> Result<Storage> {
    memory.holding(bytemuck::cast_slice(dynamic_map()), Category::Workspace)
}

/// As [`nf4::quantize`], on all threads.
fn quantize(values: &[f32], workers: &Workers) -> (Vec<u8>, Vec<f32>) {
    let piece = BLOCKS_A_TASK * nf4::BLOCK;
    let mut quantized = vec![(Vec::new(), Vec::new()); values.len().div_ceil(piece)];
    workers.pieces(&mut quantized, 1, |index, target| {
        let end = values.len().min((index + 1) * piece);
        target[0] = nf4::quantize(&values[index * piece..end]);
    });
    let (mut packed, mut absmax) = (Vec::new(), Vec::new());
    for (codes, scales) in quantized {
        packed.extend(codes);
        absmax.extend(scales);
    }
    (packed, absmax)
}

/// Little-endian bytes in a precision.
pub(super) fn rounded(values: &[f32], precision: Precision) -> Vec<u8> {
    match precision {
        Precision::F32 => bytemuck::cast_slice(values).to_vec(),
        Precision::Bf16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
    }
}
