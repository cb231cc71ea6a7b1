//! `ctl export`: a model with its adapter merged in, as a sentence-transformers folder that everything reads.
//!
//! A LoRA adapter is merged into the full-precision weights, a QLoRA adapter into the *dequantized* ones: the folder
//! reproduces the vectors of the base that the adapter was trained on, and its README says which base that is.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use motley_scheduler_core::document::Model;
use motley_scheduler_core::document::model::AdapterBase;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Serialize;

use super::WorkloadError;
use super::dialect::{float32_config, module_files};
use super::disk::{DiskError, at, write_atomically};
use super::identity::AdapterFiles;
use super::model::{OpenModel, TextModel, open_model};
use crate::devices::DeviceChoice;
use crate::models::{Fetched, ModelSettings, Places, unstoppable};

/// What to export, and where to.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    pub model: Model,
    pub settings: ModelSettings,
    /// Absent: the base as it is, in this layout.
    pub adapter: Option<(PathBuf, AdapterBase)>,
    /// Must not exist, or be empty.
    pub output: PathBuf,
    pub threads: Option<u32>,
}

/// What was exported.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExportSummary {
    pub folder: PathBuf,
    pub weights_sha256: String,
    /// Which base the folder reproduces, in words.
    pub base: String,
}

/// Merges and writes.
///
/// # Errors
/// Model or adapter that cannot be used, or a folder that is there already. Nothing is left behind then.
pub fn export_merged(
    options: &ExportOptions,
    progress: &mut dyn FnMut(Fetched),
) -> Result<ExportSummary, WorkloadError> {
    if fs::read_dir(&options.output).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(WorkloadError::Unusable {
            what: format!("{} is there already and not empty", options.output.display()),
            hint: "choose a new folder; nothing is overwritten",
        });
    }
    let adapter = options.adapter.as_ref();
    let adapter = adapter.map(|(folder, base)| Ok::<_, WorkloadError>((AdapterFiles::read(folder)?, *base)));
    let adapter = adapter.transpose()?;
    let files = adapter.as_ref().map(|(files, _)| files);
    let mut fetched = unstoppable(progress);
    let open = open_model(&options.model, files, &options.settings, &Places::default(), &mut fetched)?;
    let backend = DeviceChoice::cpu(options.threads).open()?.backend;
    let model = match &adapter {
        Some((files, base)) => open.load_with_adapter(&backend, files, *base)?,
        None => open.load(&backend, None, false)?,
    };
    let base = base_in_words(adapter.as_ref());
    let name = options.output.file_name().and_then(|name| name.to_str()).unwrap_or("model");
    let partial = options.output.with_file_name(format!(".partial-{name}"));
    let _ = fs::remove_dir_all(&partial);
    let result = write_all(&open, &model, &partial, &base).and_then(|sha256| {
        // An empty folder may be in the place.
        let _ = fs::remove_dir(&options.output);
        fs::rename(&partial, &options.output).map_err(at(&options.output))?;
        Ok(sha256)
    });
    if result.is_err() {
        let _ = fs::remove_dir_all(&partial);
    }
    Ok(ExportSummary { folder: options.output.clone(), weights_sha256: result?, base })
}

fn base_in_words(adapter: Option<&(AdapterFiles, AdapterBase)>) -> String {
    let Some((files, base)) = adapter else { return "the base model, unchanged".to_owned() };
    let recipe = files.identity.as_ref().and_then(|identity| identity.base.quantization.as_ref());
    match (recipe, base) {
        (Some(recipe), AdapterBase::Own) => format!(
            "the adapter on its own base, quantized to {} (block {}{}) and merged into the dequantized weights",
            recipe.kind,
            recipe.block_size,
            if recipe.double_quantization { ", double quantization" } else { "" }
        ),
        (Some(_), AdapterBase::FullPrecision) => {
            "the adapter on the full-precision base, on which it was NOT trained (it belongs to the quantized one); \
             its vectors differ from those measured in training"
                .to_owned()
        }
        (None, _) => "the adapter on the full-precision base".to_owned(),
    }
}

/// Writes the whole folder; gives the SHA-256 of the weights.
fn write_all(
    open: &OpenModel,
    model: &TextModel,
    folder: &Path,
    base: &str,
) -> Result<String, WorkloadError> {
    fs::create_dir_all(folder).map_err(at(folder))?;
    let weights = merged_file(open, model)?;
    write_atomically(&folder.join("model.safetensors"), &weights)?;
    let sha256 = super::results::sha256_text(&weights);
    let config = float32_config(&open.files.config).map_err(|error| WorkloadError::Unusable {
        what: format!("config.json is not JSON: {error}"),
        hint: "fetch the model again",
    })?;
    write_atomically(&folder.join("config.json"), config.as_bytes())?;
    for (name, bytes) in module_files(open)? {
        let path = folder.join(name);
        make_parent(&path)?;
        write_atomically(&path, &bytes)?;
    }
    if open.pooling()?.normalize {
        let path = folder.join("2_Normalize");
        fs::create_dir_all(&path).map_err(at(&path))?;
    }
    write_atomically(&folder.join("README.md"), card(open, base).as_bytes())?;
    Ok(sha256)
}

fn make_parent(path: &Path) -> Result<(), DiskError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(at(parent))
}

/// The source's tensors, as float32, with the merged ones in their places. What the encoder does not use (a pooler,
/// a head) is copied, so that other loaders find all they expect.
fn merged_file(open: &OpenModel, model: &TextModel) -> Result<Vec<u8>, WorkloadError> {
    let merged = if model.encoder.adapter().is_some() {
        let weights =
            model.encoder.merged_weights()?.map(|weight| weight.map(|(name, _, values)| (name, values)));
        weights.collect::<motley_ops::Result<BTreeMap<String, Vec<f32>>>>()?
    } else {
        BTreeMap::new()
    };
    let damaged = |error: safetensors::SafeTensorError| WorkloadError::Unusable {
        what: format!("the weights of {} cannot be read: {error}", open.folder.origin),
        hint: "fetch the model again",
    };
    let mut tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = BTreeMap::new();
    let mut replaced = 0;
    for map in &open.files.weights {
        for (name, view) in SafeTensors::deserialize(map).map_err(damaged)?.tensors() {
            let values = merged.iter().find(|(path, _)| is_named(&name, path)).map(|(_, values)| values);
            replaced += usize::from(values.is_some());
            let (dtype, bytes) = match values {
                Some(values) => (Dtype::F32, values.iter().flat_map(|value| value.to_le_bytes()).collect()),
                None => widened(&view),
            };
            tensors.insert(name, (dtype, view.shape().to_vec(), bytes));
        }
    }
    if replaced != merged.len() {
        return Err(WorkloadError::Unusable {
            what: format!("{} of {} merged weights have a place in the weights file", replaced, merged.len()),
            hint: "fetch the model again",
        });
    }
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        TensorView::new(*dtype, shape.clone(), bytes).map(|view| (name.clone(), view))
    });
    let views = views.collect::<Result<Vec<_>, _>>().map_err(damaged)?;
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    safetensors::serialize(views, metadata).map_err(damaged)
}

/// A stored name is a path, or a path behind a prefix such as `bert.`.
fn is_named(stored: &str, path: &str) -> bool {
    stored.strip_suffix(path).is_some_and(|prefix| prefix.is_empty() || prefix.ends_with('.'))
}

/// Half-precision tensors as float32; anything else as it is.
fn widened(view: &TensorView<'_>) -> (Dtype, Vec<u8>) {
    let halves = || view.data().chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    match view.dtype() {
        Dtype::BF16 => {
            (Dtype::F32, halves().flat_map(|bits| (u32::from(bits) << 16).to_le_bytes()).collect())
        }
        Dtype::F16 => (Dtype::F32, halves().flat_map(|bits| half_to_f32(bits).to_le_bytes()).collect()),
        other => (other, view.data().to_vec()),
    }
}

/// IEEE 754 binary16.
fn half_to_f32(bits: u16) -> f32 {
    let (sign, exponent, fraction) = (bits >> 15, (bits >> 10) & 31, bits & 1023);
    let magnitude = match exponent {
        0 => f32::from(fraction) * 2f32.powi(-24),
        31 if fraction == 0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1.0 + f32::from(fraction) / 1024.0) * 2f32.powi(i32::from(exponent) - 15),
    };
    if sign == 1 { -magnitude } else { magnitude }
}

fn card(open: &OpenModel, base: &str) -> String {
    format!(
        "---\nlibrary_name: sentence-transformers\npipeline_tag: sentence-similarity\ntags:\n- sentence-transformers\n\
         - feature-extraction\n---\n\n# Merged by Motley\n\nBase model: `{}` (weights SHA-256 `{}`).\n\n\
         This folder reproduces {base}.\n\n```python\nfrom sentence_transformers import SentenceTransformer\n\n\
         model = SentenceTransformer(\"path/to/this/folder\")\nembeddings = model.encode([\"a text\"])\n```\n",
        open.source, open.folder.weights_sha256
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_widened_exactly() {
        for (bits, value) in
            [(0x3c00, 1.0), (0xc000, -2.0), (0x0001, 2f32.powi(-24)), (0x7bff, 65504.0), (0x8000, -0.0)]
        {
            assert_eq!(half_to_f32(bits).to_bits(), f32::to_bits(value), "{bits:x}");
        }
        assert!(half_to_f32(0x7c00).is_infinite() && half_to_f32(0x7e00).is_nan());
        let view = TensorView::new(Dtype::BF16, vec![2], &[0x80, 0x3f, 0x00, 0xc0]).unwrap();
        let expected: Vec<u8> = [1.0f32, -2.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(widened(&view), (Dtype::F32, expected));
    }

    #[test]
    fn names_match_behind_a_prefix() {
        assert!(is_named("encoder.layer.0.output.dense.weight", "encoder.layer.0.output.dense.weight"));
        assert!(is_named("bert.encoder.layer.0.output.dense.weight", "encoder.layer.0.output.dense.weight"));
        assert!(!is_named("xencoder.layer.0.output.dense.weight", "encoder.layer.0.output.dense.weight"));
    }
}
