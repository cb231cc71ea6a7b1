//! Weights of a model by name, out of the bytes of safetensors files. The bytes are the caller's (a map of the file);
//! nothing is copied until a tensor is asked for.

use motley_backends::SourceDtype;
use safetensors::{Dtype, SafeTensors};

use crate::{Error, Result};

/// Prefixes under which encoders are saved: bare, or as part of a model with a head.
const PREFIXES: [&str; 6] = ["", "bert.", "model.", "roberta.", "encoder.model.", "0.auto_model."];

/// Tensors of one or several files.
pub(crate) struct Weights<'a> {
    files: Vec<SafeTensors<'a>>,
    prefix: &'static str,
}

/// One tensor as stored, row-major, little-endian.
pub(crate) struct RawTensor<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) stored: SourceDtype,
}

impl<'a> Weights<'a> {
    /// `landmark` is the tensor that tells the prefix of all.
    ///
    /// # Errors
    /// Bytes that are not safetensors, or no such tensor in them.
    pub(crate) fn open(files: &[&'a [u8]], landmark: &str) -> Result<Self> {
        let parsed = files.iter().map(|bytes| SafeTensors::deserialize(bytes)).collect::<Result<Vec<_>, _>>();
        let files = parsed.map_err(Error::WeightFile)?;
        let has = |name: &str| files.iter().any(|file| file.tensor(name).is_ok());
        let prefix = PREFIXES.into_iter().find(|prefix| has(&format!("{prefix}{landmark}")));
        let prefix = prefix.ok_or_else(|| Error::MissingTensor { name: landmark.to_owned() })?;
        Ok(Weights { files, prefix })
    }

    /// The tensor `name` (without prefix), which must have this shape.
    ///
    /// # Errors
    /// Missing, of another shape, or of a dtype other than f32, f16, bf16.
    pub(crate) fn raw(&self, name: &str, shape: &[usize]) -> Result<RawTensor<'_>> {
        let full = format!("{}{name}", self.prefix);
        let view = self
            .files
            .iter()
            .find_map(|file| file.tensor(&full).ok().or_else(|| file.tensor(&former(&full)?).ok()));
        let view = view.ok_or_else(|| Error::MissingTensor { name: full.clone() })?;
        if view.shape() != shape {
            let (found, expected) = (view.shape().to_vec(), shape.to_vec());
            return Err(Error::TensorShape { name: full, found, expected });
        }
        let stored = stored(&full, view.dtype())?;
        // The view borrows its file's bytes, not the view itself.
        let bytes: &[u8] = view.data();
        Ok(RawTensor { bytes, stored })
    }

    /// As [`Weights::raw`], as f32.
    pub(crate) fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let raw = self.raw(name, shape)?;
        Ok(to_f32(raw.bytes, raw.stored))
    }
}

/// LayerNorm parameters were once called gamma and beta.
fn former(name: &str) -> Option<String> {
    let stem = name.strip_suffix("LayerNorm.weight").map(|stem| (stem, "gamma"));
    let (stem, old) = stem.or_else(|| name.strip_suffix("LayerNorm.bias").map(|stem| (stem, "beta")))?;
    Some(format!("{stem}LayerNorm.{old}"))
}

/// # Errors
/// A dtype that is not a float of 16 or 32 bits.
pub(crate) fn stored(name: &str, dtype: Dtype) -> Result<SourceDtype> {
    match dtype {
        Dtype::F32 => Ok(SourceDtype::F32),
        Dtype::F16 => Ok(SourceDtype::F16),
        Dtype::BF16 => Ok(SourceDtype::Bf16),
        other => Err(Error::TensorDtype { name: name.to_owned(), found: format!("{other:?}") }),
    }
}

/// Little-endian bytes as f32; every stored value is exact.
pub(crate) fn to_f32(bytes: &[u8], stored: SourceDtype) -> Vec<f32> {
    let halves = || bytes.as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair));
    match stored {
        SourceDtype::F32 => bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect(),
        SourceDtype::Bf16 => halves().map(|bits| f32::from_bits(u32::from(bits) << 16)).collect(),
        SourceDtype::F16 => halves().map(f32_of_half).collect(),
    }
}

/// IEEE binary16.
fn f32_of_half(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let (exponent, fraction) = (u32::from(bits >> 10) & 0x1f, u32::from(bits & 0x3ff));
    match exponent {
        0 => {
            // A subnormal half is fraction·2⁻²⁴, a normal f32.
            let magnitude = fraction as f32 * 2f32.powi(-24);
            f32::from_bits(magnitude.to_bits() | sign)
        }
        31 => f32::from_bits(sign | 0x7f80_0000 | fraction << 13),
        _ => f32::from_bits(sign | (exponent + 112) << 23 | fraction << 13),
    }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    #[test]
    fn halves_become_the_same_numbers() {
        let cases =
            [(0x3c00, 1.0), (0xc000, -2.0), (0x0001, 2f32.powi(-24)), (0x7bff, 65504.0), (0x8000, -0.0)];
        for (bits, value) in cases {
            assert_eq!(f32_of_half(bits).to_bits(), f32::to_bits(value), "{bits:#x}");
        }
        assert!(f32_of_half(0x7e00).is_nan() && f32_of_half(0x7c00) == f32::INFINITY);
        assert_eq!(to_f32(&[0x80, 0x3f], SourceDtype::Bf16), [1.0]);
    }

    #[test]
    fn names_with_a_prefix_and_former_names_are_found() {
        let bytes: Vec<u8> = [1.0f32, 2.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        let view = |shape| TensorView::new(Dtype::F32, shape, &bytes).unwrap();
        let file = safetensors::serialize(
            [
                ("bert.embeddings.word_embeddings.weight", view(vec![2, 1])),
                ("bert.embeddings.LayerNorm.gamma", view(vec![2])),
            ],
            None,
        );
        let file = file.unwrap();
        let landmark = "embeddings.word_embeddings.weight";
        let weights = Weights::open(&[&file], landmark).unwrap();
        assert_eq!(weights.f32("embeddings.LayerNorm.weight", &[2]).unwrap(), [1.0, 2.0]);
        let wrong = weights.f32("embeddings.word_embeddings.weight", &[1, 2]).unwrap_err();
        assert!(matches!(wrong, Error::TensorShape { .. }), "{wrong}");
        assert!(matches!(weights.raw("pooler.dense.bias", &[2]), Err(Error::MissingTensor { .. })));
        assert!(Weights::open(&[&file[..5]], landmark).is_err());
    }
}
