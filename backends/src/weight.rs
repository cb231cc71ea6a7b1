//! Frozen matrices, prepared once for the products of one device.

use std::any::Any;
use std::sync::Arc;

use crate::{Error, Result};

/// A prepared matrix W [out, in]. Its layout is the backend's business.
#[derive(Clone)]
pub struct Weight {
    shape: [usize; 2],
    has_bias: bool,
    inner: Arc<dyn Any + Send + Sync>,
}

impl Weight {
    pub(crate) fn new(shape: [usize; 2], has_bias: bool, inner: Arc<dyn Any + Send + Sync>) -> Self {
        Weight { shape, has_bias, inner }
    }

    pub(crate) fn inner<W: 'static>(&self) -> Result<&W> {
        self.inner.downcast_ref().ok_or(Error::Foreign { what: "weight" })
    }

    /// [out, in]
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    pub fn has_bias(&self) -> bool {
        self.has_bias
    }
}

impl std::fmt::Debug for Weight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Weight({:?}, bias {})", self.shape, self.has_bias)
    }
}

/// Host bytes of a matrix, perhaps in parts that are stacked along `out`.
#[derive(Debug, Clone, Copy)]
pub struct WeightSource<'a> {
    /// All with the same `in`. Each is quantized by itself.
    pub parts: &'a [WeightPart<'a>],
    /// f32 [sum of out]; never quantized.
    pub bias: Option<&'a [f32]>,
    pub format: WeightFormat,
}

/// One matrix, row-major.
#[derive(Debug, Clone, Copy)]
pub struct WeightPart<'a> {
    /// Little-endian; need not be aligned. The backend `null` looks at the shape alone.
    pub bytes: &'a [u8],
    /// [out, in]
    pub shape: [usize; 2],
    pub dtype: SourceDtype,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceDtype {
    F32,
    F16,
    Bf16,
}

/// What the values of a prepared matrix are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightFormat {
    F32,
    /// [`motley_kernels::nf4`], quantized from the values as f32.
    Nf4 {
        double_quantization: bool,
    },
}

impl WeightSource<'_> {
    /// [sum of out, in]
    ///
    /// # Errors
    /// Parts of different widths, byte lengths or a bias that do not fit.
    pub fn shape(&self) -> Result<[usize; 2]> {
        let shape = self.shape_without_bytes()?;
        for part in self.parts {
            let (wanted, given) = (part.shape[0] * part.shape[1] * part.dtype.bytes(), part.bytes.len());
            if wanted != given {
                return Err(Error::Weight { problem: "byte length", wanted, given });
            }
        }
        Ok(shape)
    }

    /// As [`WeightSource::shape`], for a backend that reads no bytes.
    pub(crate) fn shape_without_bytes(&self) -> Result<[usize; 2]> {
        let width = self.parts.first().map_or(0, |part| part.shape[1]);
        for part in self.parts {
            if part.shape[1] != width {
                return Err(Error::Weight { problem: "part width", wanted: width, given: part.shape[1] });
            }
        }
        let out = self.parts.iter().map(|part| part.shape[0]).sum();
        match self.bias {
            Some(bias) if bias.len() != out => {
                Err(Error::Weight { problem: "bias length", wanted: out, given: bias.len() })
            }
            _ => Ok([out, width]),
        }
    }
}

impl WeightPart<'_> {
    /// The values as f32, row-major.
    pub fn values(&self) -> Vec<f32> {
        let wide = |bytes: &[u8]| [bytes[0], bytes[1]];
        match self.dtype {
            SourceDtype::F32 => {
                let quads = self.bytes.chunks_exact(4);
                quads.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            SourceDtype::F16 => {
                self.bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes(wide(b)).to_f32()).collect()
            }
            SourceDtype::Bf16 => {
                self.bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes(wide(b)).to_f32()).collect()
            }
        }
    }
}

impl SourceDtype {
    pub fn bytes(self) -> usize {
        match self {
            SourceDtype::F32 => 4,
            SourceDtype::F16 | SourceDtype::Bf16 => 2,
        }
    }
}
