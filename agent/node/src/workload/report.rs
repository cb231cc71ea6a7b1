//! `report.json`: what was done, with what, and what came of it.
//!
//! ```text
//! {"format": 1, "kind": "train", "name": ..., "program": {...}, "document": "<text>", "document_sha256": ...,
//!  "model": {...}, "adapter": {...}, "data": [...], "seed": 42,
//!  "results": [...],                     of the model that the job leaves behind, on its own base
//!  "before": [...], "full_precision": {"before": [...], "after": [...]},     train only
//!  "training": {...}, "memory": {...}, "timings": {...}}
//! ```
//!
//! All measured times are in `timings`, `evaluation_time` and `training.tokens_per_second`, all measured memory in
//! `memory`; the rest is the same for the same job.

use std::collections::BTreeMap;
use std::path::Path;

use motley_backends::{Category, MemoryReport};
use motley_scheduler_core::document::Quantization;
use serde::{Deserialize, Serialize};

use super::WorkloadError;
use super::disk::{DiskError, write_atomically};
use super::identity::{AdapterFiles, Recipe};
use super::job::Job;
use super::model::{OpenModel, pooling_name};
use super::program::{ProgramFacts, peak_resident_bytes};
use super::results::{DataFacts, TaskResult, sha256_text};
use crate::runner::Context;

/// `report.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub format: u32,
    pub kind: String,
    pub name: String,
    pub program: ProgramFacts,
    /// The user's text, overrides included.
    pub document: String,
    pub document_sha256: String,
    pub model: ModelFacts,
    pub adapter: Option<AdapterFacts>,
    /// All that was read: training and validation rows, then the data of each task.
    pub(crate) data: Vec<DataFacts>,
    pub seed: u64,
    pub results: Vec<TaskResult>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<TaskResult>,
    /// The same adapter on the base that was not quantized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_precision: Option<OtherBase>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<TrainingFacts>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryFacts>,
    pub timings: Timings,
}

/// The base model and where it was computed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFacts {
    pub source: String,
    /// Where it really came from.
    pub origin: String,
    pub weights_sha256: String,
    /// Of config.json.
    pub config_sha256: String,
    /// Of tokenizer.json.
    pub tokenizer_sha256: String,
    /// sentence-transformers' name of it, such as `mean`.
    pub pooling: String,
    /// Vectors have length 1.
    pub normalize: bool,
    /// Absent: full precision.
    pub quantization: Option<Recipe>,
    pub max_length: usize,
    pub prompts: BTreeMap<String, String>,
    pub backend: String,
    pub device: String,
    /// What activations were kept in.
    #[serde(default)]
    pub precision: String,
    /// Runs agree to the bit where this is equal.
    pub numerics_class: String,
}

/// The adapter that was used or made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterFacts {
    /// Of both of its files, as motley.json has it.
    pub sha256: String,
    /// SHA-256 of the weights it was trained on; absent where unknown.
    pub base_weights_sha256: Option<String>,
    pub base_quantization: Option<Recipe>,
}

/// Results on the full-precision base of an adapter that belongs to a quantized one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OtherBase {
    pub before: Vec<TaskResult>,
    pub after: Vec<TaskResult>,
}

/// What training was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingFacts {
    pub steps: u64,
    pub epochs: f64,
    pub rows: u64,
    pub tokens: u64,
    pub trained_parameters: u64,
    pub truncated_texts: u64,
    pub first_loss: f64,
    pub last_loss: f64,
    /// Steps at which attempts after the first began; empty for an uninterrupted training.
    pub resumed_at: Vec<u64>,
    /// Every numerics class that computed a part; more than one means that bits depend on the interruptions.
    pub numerics_classes: Vec<String>,
    pub tokens_per_second: f64,
}

/// Most bytes held at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryFacts {
    /// On the device, by what for; the peaks of different purposes need not fall together.
    pub device_peak_bytes: BTreeMap<String, u64>,
    pub device_total_peak_bytes: u64,
    /// What was asked for.
    pub planned_bytes: Option<u64>,
    /// Of this process, files mapped into it included.
    pub resident_peak_bytes: Option<u64>,
}

/// Seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Timings {
    /// Bringing the weights that were measured or trained on to the device.
    pub load_seconds: f64,
    #[serde(default)]
    pub train_seconds: f64,
    pub total_seconds: f64,
}

const FORMAT: u32 = 1;

impl Report {
    /// A report of a job without results yet.
    ///
    /// # Errors
    /// The model's pooling cannot be read.
    pub(crate) fn new(
        context: &Context,
        job: &Job<'_>,
        open: &OpenModel,
        quantization: Option<Quantization>,
    ) -> Result<Report, WorkloadError> {
        let pooling = open.pooling()?;
        let info = job.backend.info();
        let document = context.spec.assignment.document.clone();
        Ok(Report {
            format: FORMAT,
            kind: context.document.kind().to_owned(),
            name: context.document.name.clone(),
            program: ProgramFacts::current(),
            document_sha256: sha256_text(document.as_bytes()),
            document,
            model: ModelFacts {
                source: open.source.clone(),
                origin: open.folder.origin.clone(),
                weights_sha256: open.folder.weights_sha256.to_string(),
                config_sha256: sha256_text(open.files.config.as_bytes()),
                tokenizer_sha256: sha256_text(open.files.tokenizer.as_bytes()),
                pooling: pooling_name(pooling.kind).to_owned(),
                normalize: pooling.normalize,
                quantization: quantization.map(Recipe::of),
                max_length: open.tokenizer.max_length(),
                prompts: open.tokenizer.settings().prompts.clone(),
                backend: context.spec.assignment.backend.name().to_owned(),
                device: info.name.clone(),
                precision: info.precision.name().to_owned(),
                numerics_class: info.numerics_class.clone(),
            },
            adapter: None,
            data: Vec::new(),
            seed: 0,
            results: Vec::new(),
            before: Vec::new(),
            full_precision: None,
            training: None,
            memory: None,
            timings: Timings::default(),
        })
    }

    /// Writes `report.json`; it appears complete.
    pub(crate) fn write(&self, output: &Path) -> Result<(), DiskError> {
        let mut text = serde_json::to_vec_pretty(self).expect("plain data is JSON");
        text.push(b'\n');
        write_atomically(&output.join("report.json"), &text)
    }
}

impl AdapterFiles {
    pub(crate) fn facts(&self) -> AdapterFacts {
        let base = self.identity.as_ref().map(|identity| &identity.base);
        AdapterFacts {
            sha256: self.sha256.clone(),
            base_weights_sha256: base.map(|base| base.weights_sha256.clone()),
            base_quantization: base.and_then(|base| base.quantization.clone()),
        }
    }
}

impl MemoryFacts {
    pub(crate) fn new(report: &MemoryReport, planned_bytes: Option<u64>) -> MemoryFacts {
        let peak = |category: Category| (category.name().to_owned(), report.category(category).peak);
        MemoryFacts {
            device_peak_bytes: Category::ALL.into_iter().map(peak).collect(),
            device_total_peak_bytes: report.peak,
            planned_bytes,
            resident_peak_bytes: peak_resident_bytes(),
        }
    }
}
