//! How the right factor of a product is stored, and which source reads it.

use half::f16;

use super::weight::PieceValues;
use super::{Wgpu, product};
use crate::Result;
use crate::backend::Backend;
use crate::buffer::{Buffer, View};
use crate::weight::SourceDtype;

const WORDS: &str = include_str!("right_words.wgsl");
const NATIVE: &str = include_str!("right_f16.wgsl");
const NF4: &str = include_str!("right_nf4.wgsl");

/// As the sources number them, where one reads several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    F32 = 0,
    Bf16 = 1,
    /// f16 by their bits, for devices that have none of their own.
    F16Bits = 2,
    F16 = 3,
    Nf4 = 4,
    DoubleNf4 = 5,
}

/// The right factor of a product.
#[derive(Clone, Copy)]
pub(super) struct Right<'a> {
    pub format: Format,
    /// Absent: a factor of no elements.
    pub view: Option<View<'a>>,
    /// Of NF4: absmax or its codes, nested_absmax, tables.
    pub scales: [Option<View<'a>>; 3],
    pub scale_offset: f32,
}

impl<'a> Right<'a> {
    pub fn new(format: Format, view: Option<View<'a>>) -> Self {
        Right { format, view, scales: [None; 3], scale_offset: 0.0 }
    }

    /// `tables` are the map of kernel nf4 and the values of its codes.
    pub fn of(wgpu: &Wgpu, values: &'a PieceValues<'_>, tables: &'a Buffer) -> Result<Self> {
        Ok(match values {
            PieceValues::Resident(buffer, dtype) => Right::new(Format::of(wgpu, *dtype)?, Some(buffer.all())),
            PieceValues::Dequantized(buffer) => Right::new(Format::F32, Some(buffer.all())),
            PieceValues::Nf4 { packed, absmax } => {
                let scales = [Some(absmax.all()), None, Some(tables.all())];
                Right { scales, ..Right::new(Format::Nf4, Some(packed.all())) }
            }
            PieceValues::DoubleNf4 { packed, codes, nested_absmax, offset } => {
                let scales = [codes.all(), nested_absmax.all(), tables.all()].map(Some);
                let right = Right::new(Format::DoubleNf4, Some(packed.all()));
                Right { scales, scale_offset: *offset, ..right }
            }
        })
    }
}

impl Format {
    /// What reads it on this device.
    fn of(wgpu: &Wgpu, dtype: SourceDtype) -> Result<Self> {
        Ok(match dtype {
            SourceDtype::F32 => Format::F32,
            SourceDtype::Bf16 => Format::Bf16,
            SourceDtype::F16 if reads_f16(wgpu)? => Format::F16,
            SourceDtype::F16 => Format::F16Bits,
        })
    }

    pub fn source(self) -> &'static str {
        match self {
            Format::F32 | Format::Bf16 | Format::F16Bits => WORDS,
            Format::F16 => NATIVE,
            Format::Nf4 | Format::DoubleNf4 => NF4,
        }
    }

    /// How many buffers a product binds.
    pub fn buffers(self) -> usize {
        match self {
            Format::Nf4 | Format::DoubleNf4 => 7,
            _ => 4,
        }
    }

    /// What the source needs to have enabled.
    pub fn enable(self) -> &'static str {
        if self == Format::F16 { "enable f16;\n" } else { "" }
    }
}

/// Whether the device's own f16 are what their bits say, also below the normal numbers: WGSL lets a device take those
/// for 0, and then the bits are the better way. All of them go through a product by 1, once.
fn reads_f16(wgpu: &Wgpu) -> Result<bool> {
    if let Some(known) = wgpu.reads_f16.get() {
        return Ok(*known);
    }
    let reads = wgpu.gpu.has_f16 && small_f16_come_through(wgpu)?;
    Ok(*wgpu.reads_f16.get_or_init(|| reads))
}

fn small_f16_come_through(wgpu: &Wgpu) -> Result<bool> {
    // Those below the normal numbers, and as many normal ones.
    let values: Vec<f16> = (0..0x800).map(f16::from_bits).collect();
    let own = |bytes: &[u8]| {
        let buffer = wgpu.shelf.own(bytes.len())?;
        wgpu.upload(bytes, buffer.all()).map(|()| buffer)
    };
    let (one, right) = (own(bytemuck::bytes_of(&1.0f32))?, own(bytemuck::cast_slice(&values))?);
    let output = wgpu.shelf.own(values.len() * 4)?;
    product::scaled(wgpu, one.all(), Right::new(Format::F16, Some(right.all())), output.all())?;
    let mut got = vec![0.0f32; values.len()];
    wgpu.download(output.all(), bytemuck::cast_slice_mut(&mut got))?;
    Ok(std::iter::zip(got, values).all(|(got, wanted)| got == wanted.to_f32()))
}
