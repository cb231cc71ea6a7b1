//! `[model]` and references to adapters: which weights, from where.

use std::collections::BTreeMap;
use std::fmt;

use crate::id::{ContentHash, JobId};

/// Where a model or an adapter comes from.
///
/// ```text
/// sentence-transformers/all-MiniLM-L6-v2   a hub id (the node's configured hub)
/// modelscope:ID                            the same id on ModelScope
/// file:PATH                                a folder, relative to the document; uploaded once, by content
/// pip:PACKAGE                              a Python package that carries model files
/// job:ID                                   the output of another job
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Hub { id: String },
    ModelScope { id: String },
    File { path: String },
    Pip { package: String },
    Job { job: JobId },
}

/// `[model]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    pub source: Source,
    /// Tried in order when `source` cannot be had (`fallbacks = ["pip:..."]`).
    pub fallbacks: Vec<Source>,
    /// Branch, tag or commit on the hub; default `main`.
    pub revision: Option<String>,
    /// Expected SHA-256 of the weights file; checked wherever the model comes from.
    pub sha256: Option<ContentHash>,
    /// Longest text in tokens, special tokens included; default: what the model says.
    pub max_length: Option<u32>,
    /// Prompts by name, over those of the model (`prompts = { query = "query: " }`).
    pub prompts: BTreeMap<String, String>,
    /// `dropout = "config"`: the frozen base drops out as its config says. Default off.
    pub dropout_from_config: bool,
    /// What activations are kept in. Default auto.
    pub precision: ModelPrecision,
}

/// `precision` of `[model]` (`torch_dtype` elsewhere).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ModelPrecision {
    /// What the device is fastest in without loss of quality: bf16 on cuda where the card has it, else f32.
    #[default]
    Auto,
    F32,
    Bf16,
}

impl ModelPrecision {
    pub const ALL: [ModelPrecision; 3] = [ModelPrecision::Auto, ModelPrecision::F32, ModelPrecision::Bf16];

    pub fn name(self) -> &'static str {
        match self {
            ModelPrecision::Auto => "auto",
            ModelPrecision::F32 => "f32",
            ModelPrecision::Bf16 => "bf16",
        }
    }
}

/// How frozen linear weights are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantization {
    Nf4 { double_quantization: bool },
}

/// `[adapter]` of an evaluate or serve document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterReference {
    /// `job:ID` or `file:PATH` (a folder with `adapter_config.json`).
    pub source: Source,
    /// Which base the adapter runs on.
    pub base: AdapterBase,
}

/// `base = "own"` (default): the base that the adapter was trained on, quantized if that was; any other is
/// refused. `base = "full_precision"`: asked for by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AdapterBase {
    #[default]
    Own,
    FullPrecision,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Hub { id } => f.write_str(id),
            Source::ModelScope { id } => write!(f, "modelscope:{id}"),
            Source::File { path } => write!(f, "file:{path}"),
            Source::Pip { package } => write!(f, "pip:{package}"),
            Source::Job { job } => write!(f, "job:{job}"),
        }
    }
}

/// A source as written; nothing when it is none.
pub(super) fn parse_source(text: &str) -> Option<Source> {
    match text.split_once(':') {
        Some(("modelscope", id)) => is_hub_id(id).then(|| Source::ModelScope { id: id.to_owned() }),
        Some(("file", path)) => (!path.trim().is_empty()).then(|| Source::File { path: path.to_owned() }),
        Some(("pip", package)) => is_package(package).then(|| Source::Pip { package: package.to_owned() }),
        Some(("job", job)) => job.parse().ok().map(|job| Source::Job { job }),
        Some(_) => None,
        None => is_hub_id(text).then(|| Source::Hub { id: text.to_owned() }),
    }
}

/// `owner/name` or `name`: goes into URLs and cache paths, so nothing but plain parts.
fn is_hub_id(id: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    id.len() <= 200 && id.split('/').count() <= 2 && id.split('/').all(plain)
}

/// A name, perhaps with `==VERSION`: an argument of `pip download`, never an option of it.
fn is_package(package: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '=');
    package.len() <= 200
        && package.starts_with(|c: char| c.is_ascii_alphanumeric())
        && package.chars().all(allowed)
}
