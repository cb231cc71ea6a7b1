//! Weights of linear layers: what comes in from a file, and the opaque form a device keeps.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use crate::Error;

/// Element type of weights in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightDtype {
    F32,
    F16,
    Bf16,
}

/// How a device keeps a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightFormat {
    F32,
    Nf4 { double_quantization: bool },
}

/// One matrix [out, in], row-major, little-endian.
#[derive(Debug, Clone, Copy)]
pub struct WeightPart<'a> {
    pub bytes: &'a [u8],
    pub shape: [usize; 2],
    pub dtype: WeightDtype,
}

/// A weight to be prepared: parts stacked along `out` (such as query, key and value), each quantized by itself.
#[derive(Debug, Clone, Copy)]
pub struct WeightSource<'a> {
    pub parts: &'a [WeightPart<'a>],
    pub format: WeightFormat,
    /// f32 [out of all parts].
    pub bias: Option<&'a [f32]>,
}

/// A weight in a device's own layout.
#[derive(Clone)]
pub struct Weight {
    pub(crate) shape: [usize; 2],
    pub(crate) format: WeightFormat,
    pub(crate) inner: Arc<dyn Any + Send + Sync>,
}

impl Weight {
    /// [out, in]
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    pub fn format(&self) -> WeightFormat {
        self.format
    }
}

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Weight({}x{}, {:?})", self.shape[0], self.shape[1], self.format)
    }
}

impl WeightDtype {
    pub fn bytes(self) -> usize {
        match self {
            WeightDtype::F32 => 4,
            WeightDtype::F16 | WeightDtype::Bf16 => 2,
        }
    }
}

impl WeightPart<'_> {
    /// The values as f32.
    pub(crate) fn values(&self) -> Vec<f32> {
        let half =
            |decode: fn([u8; 2]) -> f32| self.bytes.chunks_exact(2).map(|b| decode([b[0], b[1]])).collect();
        match self.dtype {
            WeightDtype::F32 => {
                self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            WeightDtype::F16 => half(|b| half::f16::from_le_bytes(b).to_f32()),
            WeightDtype::Bf16 => half(|b| half::bf16::from_le_bytes(b).to_f32()),
        }
    }
}

impl WeightSource<'_> {
    /// Checks the parts against each other and returns [out, in].
    pub(crate) fn shape(&self) -> Result<[usize; 2], Error> {
        let columns = self.parts.first().map_or(0, |part| part.shape[1]);
        let rows = self.parts.iter().map(|part| part.shape[0]).sum();
        for part in self.parts {
            let expected = part.shape[0] * part.shape[1] * part.dtype.bytes();
            if part.bytes.len() != expected || part.shape[1] != columns {
                return Err(Error::WeightShape { shape: part.shape, bytes: part.bytes.len(), expected });
            }
        }
        if let Some(bias) = self.bias.filter(|bias| bias.len() != rows) {
            return Err(Error::WeightShape { shape: [rows, 1], bytes: bias.len() * 4, expected: rows * 4 });
        }
        Ok([rows, columns])
    }
}
