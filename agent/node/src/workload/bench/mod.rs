//! `ctl bench encode|train|kernels`: how fast a device is, and what share of its measured rate that is.
//!
//! ```text
//! texts     a model and a data file, tokenizing included, as the peers in `docs/performance.md` are measured
//! random    random weights of any shape and random token ids: no download, no file
//! kernels   each product and kernel of a layer by itself
//! line      what is printed
//!
//! share     operations of [`motley_ops::Work`] a second ÷ the rate of a large square product, measured right before in
//!           the same precision
//! ```

mod kernels;
mod line;
mod random;
mod texts;

use std::path::PathBuf;

use motley_backends::Backend;
use motley_ops::{ModelConfig, Quantization as Nf4, shapes};
use motley_scheduler_core::document::{Model, Quantization};

use super::WorkloadError;
use super::train::BenchSettings;
use crate::devices::DeviceChoice;
use crate::devices::measure::measure_products;
use crate::models::{Fetched, ModelSettings};

pub use kernels::{KernelLine, bench_kernels};
pub use line::BenchLine;

/// What to measure.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    pub subject: Subject,
    pub quantization: Option<Quantization>,
    pub device: DeviceChoice,
    /// Tokens computed at once while encoding; absent: as the device has it.
    pub pass_tokens: Option<u32>,
    pub training: TrainingOptions,
}

/// A model, and what it is given.
#[derive(Debug, Clone)]
pub enum Subject {
    /// JSONL with sentence1, sentence2, score.
    Model { model: Box<Model>, settings: Box<ModelSettings>, data: PathBuf },
    /// `texts` texts of `length` random tokens.
    Random { shape: String, length: u32, texts: u32 },
}

/// How `bench train` trains.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingOptions {
    /// Optimizer steps after the warm-up: 1 to [`TRAIN_STEPS_MAX`].
    pub steps: u32,
    /// Of random texts.
    pub tokens_per_step: Option<u32>,
    pub loss: BenchLoss,
    /// Tokens computed at once; more are run twice.
    pub token_budget: u32,
    pub checkpoint_layers: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BenchLoss {
    Cosent,
    Infonce,
}

/// Default of [`TrainingOptions::steps`].
pub const TRAIN_STEPS: u32 = 20;

/// Most of [`TrainingOptions::steps`]: hours of measuring. Each is kept, for the percentiles.
pub const TRAIN_STEPS_MAX: u32 = 100_000;

/// Default of [`TrainingOptions::token_budget`], that of `train.token_budget`.
pub const TOKEN_BUDGET: u32 = 16_384;

const ROUNDS: usize = 3;

/// Texts whose latency is measured, one by one.
const LATENCY_TEXTS: usize = 200;
const WARM_UP_STEPS: u32 = 3;

/// Measures encoding.
///
/// # Errors
/// Model or data that cannot be used, a device that failed.
pub fn bench_encode(
    options: &BenchOptions,
    progress: &mut dyn FnMut(Fetched),
) -> Result<BenchLine, WorkloadError> {
    match &options.subject {
        Subject::Model { model, settings, data } => {
            texts::encode(options, &texts::Source { model, settings, data }, progress)
        }
        Subject::Random { shape, length, texts } => {
            random::encode(options, &random::Source::new(shape, *length, *texts)?)
        }
    }
}

/// Measures training.
///
/// # Errors
/// Model or data that cannot be used, a device that failed.
pub fn bench_train(
    options: &BenchOptions,
    progress: &mut dyn FnMut(Fetched),
) -> Result<BenchLine, WorkloadError> {
    match &options.subject {
        Subject::Model { model, settings, data } => {
            texts::train(options, &texts::Source { model, settings, data }, progress)
        }
        Subject::Random { shape, length, texts } => {
            random::train(options, &random::Source::new(shape, *length, *texts)?)
        }
    }
}

/// The device, and the rate of its products: measured on an instance of its own, whose memory is gone before the model
/// comes.
struct Bench {
    backend: std::sync::Arc<dyn Backend>,
    note: Option<String>,
    peak: f64,
}

impl Bench {
    fn open(options: &BenchOptions) -> Result<Bench, WorkloadError> {
        let choice = options.device.settled();
        let peak = measure_products(&choice.open()?.backend)?;
        let opened = choice.open()?;
        Ok(Bench { backend: opened.backend, note: opened.note, peak })
    }
}

fn shape_config(name: &str) -> Result<ModelConfig, WorkloadError> {
    let text = shapes::shape(name).ok_or_else(|| WorkloadError::Unusable {
        what: format!("no shape is named `{name}`; there are {}", shapes::names()),
        hint: "name one of them",
    })?;
    Ok(ModelConfig::parse(text)?)
}

fn nf4(quantization: Option<Quantization>) -> Option<Nf4> {
    quantization.map(|Quantization::Nf4 { double_quantization }| Nf4 { double: double_quantization })
}

impl TrainingOptions {
    fn settings(&self) -> BenchSettings {
        BenchSettings {
            infonce: self.loss == BenchLoss::Infonce,
            total_steps: u64::from(WARM_UP_STEPS + self.steps),
            token_budget: self.token_budget as usize,
            checkpoint_layers: self.checkpoint_layers,
        }
    }

    /// How often layers run once more for the way back, of a step of so many tokens.
    fn again(&self, tokens: u64) -> u32 {
        u32::from(self.checkpoint_layers) + u32::from(tokens > u64::from(self.token_budget))
    }
}
