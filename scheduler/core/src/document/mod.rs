//! Job documents: text in, typed out.
//!
//! The scheduler acts on kind, name, priority and resources alone; the rest travels as the user's own text,
//! which the node parses with this same code. Parsing is strict: an unknown key is an error that names the
//! nearest known one. Nothing here opens a file: paths are kept as written, relative to the document.

pub mod error;
pub mod evaluate;
pub mod files;
pub mod keys;
pub mod model;
pub mod overrides;
mod parse;
mod reader;
pub mod resources;
pub mod serve;
#[cfg(test)]
mod tests;
pub mod train;
mod workload;

pub use error::DocumentError;
pub use evaluate::{Evaluate, Task, TaskKind};
pub use files::{FileReference, FileRole};
pub use model::{AdapterReference, Model, ModelPrecision, Quantization, Source};
pub use overrides::apply_overrides;
pub use resources::{BackendKind, Choice, DeviceCount, Memory, Priority, Resources};
pub use serve::{Serve, Truncate};
pub use train::Train;

use std::collections::BTreeSet;

use crate::id::JobId;

/// A parsed job document. Every value has been checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Letters, digits, `-`, `_` and `.`, at most 64.
    pub name: String,
    pub priority: Priority,
    /// Alternatives, in order of preference; never empty.
    pub resources: Vec<Resources>,
    pub workload: Workload,
}

/// What a job does.
#[derive(Debug, Clone, PartialEq)]
pub enum Workload {
    Train(Box<Train>),
    Evaluate(Box<Evaluate>),
    Serve(Box<Serve>),
}

impl Document {
    /// Reads a document.
    ///
    /// # Errors
    /// Malformed TOML, an unknown key (with the nearest known one), a missing key, a value out of range:
    /// each with key, line and remedy.
    pub fn parse(text: &str) -> Result<Document, DocumentError> {
        parse::parse(text)
    }

    /// `train`, `evaluate` or `serve`.
    pub fn kind(&self) -> &'static str {
        match self.workload {
            Workload::Train(_) => "train",
            Workload::Evaluate(_) => "evaluate",
            Workload::Serve(_) => "serve",
        }
    }

    /// Jobs whose output this one uses.
    pub fn inputs(&self) -> Vec<JobId> {
        let model = self.model();
        let adapter = self.adapter().map(|adapter| &adapter.source);
        let sources = [&model.source].into_iter().chain(&model.fallbacks).chain(adapter);
        let jobs = sources.filter_map(|source| match source {
            Source::Job { job } => Some(*job),
            Source::Hub { .. } | Source::ModelScope { .. } | Source::File { .. } | Source::Pip { .. } => None,
        });
        jobs.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The adapter that an evaluate or serve job uses.
    pub fn adapter(&self) -> Option<&AdapterReference> {
        match &self.workload {
            Workload::Train(_) => None,
            Workload::Evaluate(evaluate) => evaluate.adapter.as_ref(),
            Workload::Serve(serve) => serve.adapter.as_ref(),
        }
    }

    /// The model that the job works on.
    pub fn model(&self) -> &Model {
        match &self.workload {
            Workload::Train(train) => &train.model,
            Workload::Evaluate(evaluate) => &evaluate.model,
            Workload::Serve(serve) => &serve.model,
        }
    }
}
