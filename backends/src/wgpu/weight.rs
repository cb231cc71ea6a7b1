//! Frozen matrices on the device, in pieces of whole rows that a binding can hold.
//!
//! ```text
//! f32   [rows, in] in f32, or in 16 bits where the source has them
//! nf4   as kernel nf4 stores it; a piece begins with a block of scales, so that it is an array of its own
//! ```
//!
//! A product of few rows decodes NF4 itself; for one of many it is dequantized to workspace, piece by piece.

use motley_kernels::nf4::double::NESTED_BLOCK;
use motley_kernels::nf4::{self, BLOCK, DoubleQuantized};

use crate::backend::{Backend, Launch};
use crate::buffer::Buffer;
use crate::memory::Category;
use crate::weight::{SourceDtype, WeightFormat, WeightPart, WeightSource};
use crate::{Error, Result};

/// Bytes of an NF4 piece when it is dequantized: what a product needs as workspace at most, but for very wide rows.
pub(crate) const WORKSPACE_BYTES_MAX: u64 = 64 << 20;

pub(super) struct DeviceWeight {
    pub pieces: Vec<Piece>,
    pub bias: Option<Buffer>,
}

/// Rows of the matrix that follow each other.
pub(super) struct Piece {
    pub rows: usize,
    width: usize,
    values: Values,
}

enum Values {
    Plain { data: Buffer, dtype: SourceDtype },
    Nf4 { packed: Buffer, absmax: Buffer },
    DoubleNf4 { packed: Buffer, codes: Buffer, nested_absmax: Buffer, offset: f32 },
}

impl DeviceWeight {
    /// `binding_bytes`: how much of a buffer the device binds at once.
    pub fn new(backend: &dyn Backend, source: &WeightSource<'_>, binding_bytes: u64) -> Result<Self> {
        let [_, width] = source.shape()?;
        let mut pieces = vec![];
        match source.format {
            WeightFormat::F32 => {
                let (bytes, dtype) = plain_bytes(source);
                let rows = rows_within(binding_bytes / dtype.bytes() as u64, width, 1);
                for bytes in bytes.chunks(rows * width.max(1) * dtype.bytes()) {
                    let rows = bytes.len() / dtype.bytes() / width;
                    let data = upload(backend, bytes)?;
                    pieces.push(Piece { rows, width, values: Values::Plain { data, dtype } });
                }
            }
            WeightFormat::Nf4 { double_quantization } => {
                let rows =
                    rows_within(binding_bytes.min(WORKSPACE_BYTES_MAX) / 4, width, BLOCK * NESTED_BLOCK);
                for (index, part) in source.parts.iter().enumerate() {
                    let values = part.values();
                    check_finite(index, &values)?;
                    let quantized = Quantized::new(&values, double_quantization);
                    for first in (0..values.len()).step_by(rows * width.max(1)) {
                        let end = values.len().min(first + rows * width);
                        let values = quantized.upload(backend, first, end)?;
                        pieces.push(Piece { rows: (end - first) / width, width, values });
                    }
                }
            }
        }
        let bias = source.bias.map(|bias| upload(backend, bytemuck::cast_slice(bias))).transpose()?;
        Ok(DeviceWeight { pieces, bias })
    }

    /// All values [out, in], dequantized as the kernel's specification does.
    pub fn read(&self, backend: &dyn Backend) -> Result<Vec<f32>> {
        let mut values = vec![];
        for piece in &self.pieces {
            let count = piece.rows * piece.width;
            match &piece.values {
                Values::Plain { data, dtype } => {
                    let bytes = download(backend, data)?;
                    let shape = [piece.rows, piece.width];
                    values.extend(WeightPart { bytes: &bytes, shape, dtype: *dtype }.values());
                }
                Values::Nf4 { packed, absmax } => {
                    let (packed, absmax) = (download(backend, packed)?, download::<f32>(backend, absmax)?);
                    values.extend(nf4::dequantize(&packed, &absmax, count));
                }
                Values::DoubleNf4 { packed, codes, nested_absmax, offset } => {
                    let (codes, nested_absmax) =
                        (download(backend, codes)?, download(backend, nested_absmax)?);
                    let scales = DoubleQuantized { codes, nested_absmax, offset: *offset };
                    values.extend(nf4::dequantize(&download(backend, packed)?, &scales.absmax(), count));
                }
            }
        }
        Ok(values)
    }
}

impl Piece {
    /// The values: where they lie, or dequantized if they are NF4 and not wanted `packed`. `tables` begin with what
    /// kernel nf4 calls `map`.
    pub fn values(&self, backend: &dyn Backend, tables: &Buffer, packed: bool) -> Result<PieceValues<'_>> {
        if packed && let Some(values) = self.values.packed() {
            return Ok(values);
        }
        let count = self.rows * self.width;
        let space = || backend.allocate_unfilled(count * 4, Category::Workspace);
        Ok(PieceValues::Dequantized(match &self.values {
            Values::Plain { data, dtype } => return Ok(PieceValues::Resident(data, *dtype)),
            Values::Nf4 { packed, absmax } => {
                let out = space()?;
                let args = nf4::Args { count: count as u32 };
                let buffers = [packed.all(), absmax.all(), out.all()];
                backend.launch(&Launch::new(&nf4::DEQUANTIZE, &args, &buffers))?;
                out
            }
            Values::DoubleNf4 { packed, codes, nested_absmax, offset } => {
                let out = space()?;
                let args = nf4::DoubleArgs { count: count as u32, offset: *offset };
                let map = tables.part(0, size_of_val(nf4::dynamic_map()));
                let buffers = [packed.all(), codes.all(), nested_absmax.all(), map, out.all()];
                backend.launch(&Launch::new(&nf4::DEQUANTIZE_DOUBLE, &args, &buffers))?;
                out
            }
        }))
    }
}

/// Values of a piece, [rows, in].
pub(super) enum PieceValues<'a> {
    Resident(&'a Buffer, SourceDtype),
    /// In f32.
    Dequantized(Buffer),
    Nf4 {
        packed: &'a Buffer,
        absmax: &'a Buffer,
    },
    DoubleNf4 {
        packed: &'a Buffer,
        codes: &'a Buffer,
        nested_absmax: &'a Buffer,
        offset: f32,
    },
}

impl Values {
    /// NF4 as it is.
    fn packed(&self) -> Option<PieceValues<'_>> {
        match self {
            Values::Plain { .. } => None,
            Values::Nf4 { packed, absmax } => Some(PieceValues::Nf4 { packed, absmax }),
            Values::DoubleNf4 { packed, codes, nested_absmax, offset } => {
                Some(PieceValues::DoubleNf4 { packed, codes, nested_absmax, offset: *offset })
            }
        }
    }
}

/// What all parts of a matrix are stored in: their own dtype where it is one, whose values f32 would not make better.
pub(crate) fn resident_dtype(source: &WeightSource<'_>) -> SourceDtype {
    let first = source.parts.first().map_or(SourceDtype::F32, |part| part.dtype);
    if source.parts.iter().all(|part| part.dtype == first) { first } else { SourceDtype::F32 }
}

fn plain_bytes(source: &WeightSource<'_>) -> (Vec<u8>, SourceDtype) {
    let dtype = resident_dtype(source);
    let bytes = source.parts.iter().flat_map(|part| match part.dtype == dtype {
        true => part.bytes.to_vec(),
        false => part.values().into_iter().flat_map(f32::to_le_bytes).collect(),
    });
    (bytes.collect(), dtype)
}

/// One part, quantized by itself.
struct Quantized {
    packed: Vec<u8>,
    scales: Scales,
}

enum Scales {
    Single(Vec<f32>),
    Double(DoubleQuantized),
}

impl Quantized {
    fn new(values: &[f32], double: bool) -> Self {
        let (packed, absmax) = nf4::quantize(values);
        let scales = match double {
            true => Scales::Double(DoubleQuantized::new(&absmax)),
            false => Scales::Single(absmax),
        };
        Quantized { packed, scales }
    }

    /// Elements from `first`, which begins a block of scales, to `end`.
    fn upload(&self, backend: &dyn Backend, first: usize, end: usize) -> Result<Values> {
        let packed = upload(backend, &self.packed[first / 2..end.div_ceil(2)])?;
        let blocks = first / BLOCK..end.div_ceil(BLOCK);
        Ok(match &self.scales {
            Scales::Single(absmax) => {
                Values::Nf4 { packed, absmax: upload(backend, bytemuck::cast_slice(&absmax[blocks]))? }
            }
            Scales::Double(double) => {
                let nested = blocks.start / NESTED_BLOCK..blocks.end.div_ceil(NESTED_BLOCK);
                let nested_absmax = upload(backend, bytemuck::cast_slice(&double.nested_absmax[nested]))?;
                let codes = upload(backend, &double.codes[blocks])?;
                Values::DoubleNf4 { packed, codes, nested_absmax, offset: double.offset }
            }
        })
    }
}

/// How many rows of `width` fit `elements`, so that their elements are a multiple of `unit`; at least the fewest such.
fn rows_within(elements: u64, width: usize, unit: usize) -> usize {
    let (mut a, mut b) = (unit, width.max(1));
    while b > 0 {
        (a, b) = (b, a % b);
    }
    let fewest = unit / a;
    let most = elements as usize / width.max(1);
    (most / fewest).max(1) * fewest
}

/// A broken weight must not become a sound one: what is not finite has no code.
fn check_finite(part: usize, values: &[f32]) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(element) => Err(Error::NonFinite { part, element, value: values[element] }),
    }
}

fn upload(backend: &dyn Backend, bytes: &[u8]) -> Result<Buffer> {
    let buffer = backend.allocate_unfilled(bytes.len(), Category::Weights)?;
    backend.upload(bytes, buffer.all())?;
    Ok(buffer)
}

fn download<T: bytemuck::Pod>(backend: &dyn Backend, buffer: &Buffer) -> Result<Vec<T>> {
    let mut values = vec![T::zeroed(); buffer.bytes() / size_of::<T>()];
    backend.download(buffer.all(), bytemuck::cast_slice_mut(&mut values))?;
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_whole_rows_that_begin_with_a_block_of_scales() {
        assert_eq!(rows_within(1000, 10, 1), 100);
        assert_eq!(rows_within(16 << 20, 384, 16384), 43_648);
        assert!((43_648 * 384usize).is_multiple_of(16384));
        // Too little for the fewest rows: those.
        assert_eq!(rows_within(250, 100, 16384), 4096);
        assert_eq!(rows_within(250, 0, 16384), 16384);
    }
}
