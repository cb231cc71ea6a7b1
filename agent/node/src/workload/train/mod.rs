//! `kind = "train"`.
//!
//! ```text
//! data        rows, order, prompts, evaluation and validation data: all read and checked before a model is loaded
//! settings    the document's words as the trainer's settings
//! nearest     what to change in a training that does not fit
//! session     the loop: steps, log, validation, checkpoints, resuming
//! finish      adapter folder, measuring after, report.json
//! ```
//!
//! A training is a function of document, data and model: interrupted and resumed it leaves the same adapter, to the
//! bit, as in one go.

mod data;
mod finish;
mod nearest;
mod session;
pub(super) mod settings;
pub(super) mod validation;

use std::time::Instant;

use motley_ops::{
    Adapter, Encoder, LoraConfig, LossConfig, OptimizerConfig, Schedule, ScheduleKind, Targets, Trainer,
    TrainerConfig,
};
use motley_scheduler_core::document::Train;
use motley_scheduler_core::unit::Bytes;

use self::data::TrainData;
use self::session::Session;
use super::WorkloadError;
use super::checkpoint::{self, Checkpoint, Origin};
use super::job::Job;
use super::model::OpenModel;
use super::plan::Planned;
use super::results::{TaskResult, sha256_text};
use crate::runner::Context;

/// Runs a train job.
///
/// # Errors
/// Data, model or settings that cannot be used, the device, the disk, NaN; stopped.
pub(crate) fn run(context: &Context, train: &Train) -> Result<(), WorkloadError> {
    let began = Instant::now();
    settings::check(train)?;
    let data = TrainData::read(context, train)?;
    run_on(Job::new(context)?, train, data, began)
}

fn run_on(job: Job<'_>, train: &Train, data: TrainData, began: Instant) -> Result<(), WorkloadError> {
    let context = job.context();
    let open = job.open_model(&train.model, None)?;
    data.check_prompts(open.tokenizer.settings())?;
    let planned = data.plan(train, &open, &job)?;
    let work = Work { context, train, job, open, data, planned, began };
    work.run().map_err(|error| Planned::training(planned).explain(error, &*work.job.backend))
}

/// [`run`] on a device of the caller's.
#[cfg(test)]
pub(super) fn run_on_device(
    context: &Context,
    train: &Train,
    backend: std::sync::Arc<dyn motley_backends::Backend>,
) -> Result<(), WorkloadError> {
    let data = TrainData::read(context, train)?;
    run_on(Job::on(context, backend, None), train, data, Instant::now())
}

/// What may differ from one `ctl bench train` to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BenchSettings {
    /// Instead of CoSENT.
    pub(super) infonce: bool,
    pub(super) total_steps: u64,
    pub(super) token_budget: usize,
    pub(super) checkpoint_layers: bool,
}

/// A trainer as `ctl bench train` has it: rank 8 on all linear layers, dropout 0.05, AdamW at 5e-4.
pub(super) fn bench_trainer(encoder: Encoder, settings: &BenchSettings) -> Result<Trainer, WorkloadError> {
    let lora = LoraConfig {
        rank: 8,
        alpha: 16.0,
        dropout: 0.05,
        rank_stabilized: false,
        targets: Targets::AllLinear,
    };
    let adapter = Adapter::new(&encoder, &lora, BENCH_SEED)?;
    let infonce = LossConfig::Infonce {
        temperature: 0.05,
        symmetric: false,
        in_batch_negatives: true,
        false_negative_margin: None,
        mask_duplicates: true,
    };
    let config = TrainerConfig {
        loss: if settings.infonce { infonce } else { LossConfig::Cosent { scale: 20.0 } },
        optimizer: OptimizerConfig { learning_rate: 5e-4, ..OptimizerConfig::default() },
        schedule: Schedule { kind: ScheduleKind::Constant, warmup_steps: 0 },
        total_steps: settings.total_steps,
        max_gradient_norm: Some(1.0),
        seed: BENCH_SEED,
        token_budget_per_chunk: settings.token_budget,
        checkpoint_layers: settings.checkpoint_layers,
    };
    Ok(Trainer::new(encoder, adapter, config)?)
}

const BENCH_SEED: u64 = 42;

/// Everything that training works with.
struct Work<'a> {
    context: &'a Context,
    train: &'a Train,
    job: Job<'a>,
    open: OpenModel,
    data: TrainData,
    /// Device memory by the plan.
    planned: Bytes,
    began: Instant,
}

impl Work<'_> {
    fn run(&self) -> Result<(), WorkloadError> {
        let resumed = self.resumed()?;
        let before = match &resumed {
            Some(checkpoint) => Before::restore(self, checkpoint)?,
            None => Before::measure(self)?,
        };
        let session = Session::begin(self, &before, resumed)?;
        let trained = session.run()?;
        finish::finish(self, before, trained)
    }

    fn origin(&self) -> Origin {
        Origin {
            document_sha256: sha256_text(self.context.spec.assignment.document.as_bytes()),
            data_sha256: self.data.rows.sha256().to_string(),
            weights_sha256: self.open.folder.weights_sha256.to_string(),
        }
    }

    fn resumed(&self) -> Result<Option<Checkpoint>, WorkloadError> {
        let Some(folder) = &self.context.folders.resume else { return Ok(None) };
        let checkpoint = checkpoint::read(folder, &self.origin())?;
        let (step, total) = (checkpoint.state.step, checkpoint.state.total_steps);
        self.context.reporter.log(&format!("continuing after step {step} of {total}"));
        Ok(Some(checkpoint))
    }

    fn stop_if_asked(&self) -> Result<(), WorkloadError> {
        if self.context.stop.is_set() { Err(WorkloadError::Stopped) } else { Ok(()) }
    }
}

/// Results before training, on the base that is trained on and, where that is quantized, on the full-precision one.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
struct Before {
    own: Vec<TaskResult>,
    full_precision: Vec<TaskResult>,
    /// The examples' scores, by path below the output folder.
    #[serde(skip)]
    files: Vec<(String, Vec<u8>)>,
}

/// Part of the name of files of examples' scores.
const BEFORE: &str = "before";
const FULL_PRECISION_BEFORE: &str = "full_precision.before";
const FULL_PRECISION_AFTER: &str = "full_precision.after";

impl Before {
    fn measure(work: &Work<'_>) -> Result<Before, WorkloadError> {
        let mut before = Before::default();
        let Work { context, open, job, data, .. } = work;
        if data.tasks.is_empty() {
            return Ok(before);
        }
        let quantization = settings::quantization(&work.train.adapter);
        let model = open.load(&job.backend, quantization, false)?;
        before.own = data.tasks.measure(&model, context, BEFORE, " before training")?;
        drop(model);
        if quantization.is_some() {
            let model = open.load(&job.backend, None, false)?;
            let stage = " on the full-precision base before training";
            before.full_precision = data.tasks.measure(&model, context, FULL_PRECISION_BEFORE, stage)?;
        }
        for result in before.own.iter().chain(&before.full_precision) {
            let path = context.folders.output.join(result.examples_file());
            let bytes = std::fs::read(&path).map_err(super::disk::at(&path))?;
            before.files.push((result.examples_file().to_owned(), bytes));
        }
        for result in &before.own {
            let (name, metric) = (&result.task_name, result.metric());
            context.reporter.log(&format!("before training: {name} {metric} {}", result.summary()));
        }
        Ok(before)
    }

    fn restore(work: &Work<'_>, checkpoint: &Checkpoint) -> Result<Before, WorkloadError> {
        let value = checkpoint.state.before.clone();
        let mut before: Before = serde_json::from_value(value).map_err(|error| WorkloadError::Unusable {
            what: format!("the checkpoint's results before training cannot be read: {error}"),
            hint: "start anew",
        })?;
        before.files.clone_from(&checkpoint.before_files);
        for (path, bytes) in &before.files {
            let path = work.context.folders.output.join(path);
            let folder = path.parent().unwrap_or(&path);
            std::fs::create_dir_all(folder).map_err(super::disk::at(folder))?;
            super::disk::write_atomically(&path, bytes)?;
        }
        Ok(before)
    }
}
