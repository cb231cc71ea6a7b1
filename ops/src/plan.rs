//! Memory of a run, planned: the model itself runs on the backend that only counts.
//!
//! What a run allocates depends on the sizes of its passes alone, and never falls when one of them grows:
//!
//! ```text
//! embedding   one pass after another                                      PassShape
//! training    forward (tape) → loss over the batch → backward, if the batch is one chunk;
//!             else forward (no tape) of each chunk → loss → forward (tape) and backward of each chunk    StepShape
//! ```
//!
//! So the largest pass, run once, has the peak of them all. Where two passes are each the largest in one size, the
//! plan is for one that is the largest in both: never too small, and too large by less than the smaller part.

use motley_backends::{DeviceKind, DeviceRequest, MemoryReport, Precision, SourceDtype, open};

use crate::TokenizedText;
use crate::encoder::pass_tokens;
use crate::learn::{LossConfig, LossValue, OptimizerConfig, Schedule, ScheduleKind, TextFact, TrainRow};
use crate::learn::{Trainer, TrainerConfig};
use crate::model::split_by_budget;
use crate::{
    Adapter, Encoder, LoadOptions, LoraConfig, ModelConfig, ModelFiles, PackedBatch, Result, RowIdentity,
};

/// Sizes of the largest pass: texts that are computed together, and their tokens. Zero: there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PassShape {
    pub texts: usize,
    pub tokens: usize,
}

/// Sizes of the largest training step on one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepShape {
    pub chunk: PassShape,
    /// Rows and texts that the loss is taken over.
    pub rows: usize,
    pub texts: usize,
    /// Whether a batch fits one chunk, so that its tape is kept while the loss is taken.
    pub keeps_tape: bool,
}

/// What a plan knows of a model.
#[derive(Debug, Clone)]
pub struct PlannedModel {
    pub config: ModelConfig,
    /// What all linear weights are stored in, which some devices keep; f32, the largest, where it is not known or not
    /// the same for all.
    pub stored: SourceDtype,
}

impl PlannedModel {
    /// Of a model whose weights are not at hand.
    ///
    /// # Errors
    /// As [`ModelConfig::parse`].
    pub fn of_config(config_json: &str) -> Result<PlannedModel> {
        Ok(PlannedModel { config: ModelConfig::parse(config_json)?, stored: SourceDtype::F32 })
    }

    /// Of a model with its weights, of which the headers are read alone.
    ///
    /// # Errors
    /// As [`Encoder::check`].
    pub fn of_files(model: &ModelFiles<'_>) -> Result<PlannedModel> {
        let config = ModelConfig::parse(model.config_json)?;
        let stored = Encoder::stored(&config, model.weights)?;
        Ok(PlannedModel { config, stored })
    }
}

/// The device that is planned for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedDevice {
    pub kind: DeviceKind,
    pub precision: Precision,
    /// [`Backend::binding_limit`](motley_backends::Backend::binding_limit), where the device is open.
    pub binding_limit: Option<u64>,
}

/// What shall be run.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanRequest {
    pub device: PlannedDevice,
    pub options: LoadOptions,
    /// The adapter that is trained, or attached while embedding.
    pub adapter: Option<LoraConfig>,
    /// Embedding, in training beside the trainer's state.
    pub embedding: PassShape,
    /// Whether small passes are recorded ([`Encoder::record_passes`]). Not in training.
    pub recorded: bool,
    /// Absent: embedding only.
    pub training: Option<(StepShape, LossConfig)>,
    /// As [`TrainerConfig::checkpoint_layers`].
    pub checkpoint_layers: bool,
}

impl PassShape {
    /// The largest pass of [`Encoder::embed`] on a device of that kind over texts of these lengths, in their order.
    pub fn of_embedding(kind: DeviceKind, lengths: impl Iterator<Item = usize> + Clone) -> PassShape {
        largest(lengths, pass_tokens(kind))
    }

    /// No pass of embedding is larger, in whatever order: `texts` texts of at most `longest` tokens, `tokens` in all.
    pub fn bound_of_embedding(kind: DeviceKind, texts: usize, longest: usize, tokens: usize) -> PassShape {
        let most = pass_tokens(kind);
        PassShape { texts: texts.min(most), tokens: tokens.min(most).max(longest) }
    }

    /// The largest in each size.
    pub fn max(self, other: PassShape) -> PassShape {
        PassShape { texts: self.texts.max(other.texts), tokens: self.tokens.max(other.tokens) }
    }

    /// As it is cut where a device binds so many tokens at once.
    fn within(self, tokens: usize) -> PassShape {
        PassShape { texts: self.texts.min(tokens), tokens: self.tokens.min(tokens) }
    }

    /// Texts of these sizes, as even as can be.
    fn to_texts(self, longest: usize) -> Vec<TokenizedText> {
        let count = self.texts.max(self.tokens.div_ceil(longest));
        let length = |index: usize| self.tokens / count + usize::from(index < self.tokens % count);
        let text = |index: usize| TokenizedText { ids: vec![0; length(index).max(1)], type_ids: Vec::new() };
        (0..count).map(text).collect()
    }
}

impl StepShape {
    /// A step on `rows` rows whose texts have these lengths, row after row.
    pub fn of(rows: usize, lengths: &[usize], token_budget: usize) -> StepShape {
        let chunk = largest(lengths.iter().copied(), token_budget);
        StepShape { chunk, rows, texts: lengths.len(), keeps_tape: chunk.texts == lengths.len() }
    }

    /// The largest in each size.
    pub fn max(self, other: StepShape) -> StepShape {
        StepShape {
            chunk: self.chunk.max(other.chunk),
            rows: self.rows.max(other.rows),
            texts: self.texts.max(other.texts),
            keeps_tape: self.keeps_tape || other.keeps_tape,
        }
    }
}

fn largest(lengths: impl Iterator<Item = usize> + Clone, budget: usize) -> PassShape {
    let runs = split_by_budget(lengths.clone(), budget);
    let mut lengths = lengths;
    let pass = |run: std::ops::Range<usize>| PassShape {
        texts: run.len(),
        tokens: lengths.by_ref().take(run.len()).sum(),
    };
    runs.into_iter().map(pass).fold(PassShape::default(), PassShape::max)
}

/// Live and peak bytes by category of loading a model and running what is asked.
///
/// # Errors
/// A shape that the model cannot take.
pub fn plan_memory(model: &PlannedModel, request: &PlanRequest) -> Result<MemoryReport> {
    let backend = open(&DeviceRequest {
        backend: "null".to_owned(),
        precision: request.device.precision,
        stands_for: Some(request.device.kind),
        binding_limit: request.device.binding_limit,
        ..DeviceRequest::default()
    })?;
    let mut encoder = Encoder::blank(backend.clone(), model, &request.options)?;
    let adapter = request.adapter.as_ref().map(|config| Adapter::blank(&encoder, config)).transpose()?;
    match (adapter, request.training) {
        (Some(adapter), Some((step, loss))) => {
            let mut trainer =
                Trainer::new(encoder, adapter, trainer_config(loss, request.checkpoint_layers))?;
            embed(trainer.encoder(), request.embedding)?;
            run_step(&mut trainer, step, model.config.max_positions())?;
        }
        (adapter, _) => {
            if let Some(adapter) = adapter {
                encoder.attach(adapter);
            }
            if request.recorded {
                encoder.record_passes()?;
            }
            embed(&encoder, request.embedding)?;
        }
    }
    Ok(backend.memory())
}

fn embed(encoder: &Encoder, pass: PassShape) -> Result<()> {
    let texts = pass.within(encoder.bound_tokens()).to_texts(encoder.max_positions());
    if !texts.is_empty() {
        let texts: Vec<&TokenizedText> = texts.iter().collect();
        encoder.embed_pass(&PackedBatch::new(encoder.config(), &texts, &[])?)?;
    }
    Ok(())
}

/// One step, as [`Trainer::accumulate`] and [`Trainer::apply`] do it.
fn run_step(trainer: &mut Trainer, step: StepShape, longest: usize) -> Result<()> {
    let chunk = step.chunk.within(trainer.encoder().bound_tokens());
    let step = StepShape { keeps_tape: step.keeps_tape && chunk == step.chunk, ..step };
    let texts = chunk.to_texts(longest);
    let count = texts.len();
    let row = |(sample, text)| TrainRow { sample, texts: vec![text], label: None };
    let rows: Vec<TrainRow> = (0..).zip(texts).map(row).collect();
    let facts = facts(step.rows, step.texts);
    let embeddings = vec![0.0; facts.len() * trainer.encoder().hidden()];
    if !step.keeps_tape {
        trainer.loss(&embeddings, &facts)?;
    }
    let embedded = trainer.embed(&rows, true)?;
    if step.keeps_tape {
        trainer.loss(&embeddings, &facts)?;
    }
    let gradient = vec![0.0; count * trainer.encoder().hidden()];
    trainer.backward(embedded, &LossValue { loss: 0.0, gradient, rows: step.rows }, 0)?;
    trainer.apply().map(drop)
}

/// What the loss is told of `texts` texts in `rows` rows, as even as can be.
fn facts(rows: usize, texts: usize) -> Vec<TextFact> {
    let mut facts = Vec::with_capacity(texts);
    for row in 0..rows {
        let count = texts / rows + usize::from(row < texts % rows);
        for slot in 0..count {
            // The hash differs from text to text, as texts do.
            let hash = facts.len() as u64;
            let identity = RowIdentity { sample: row as u32, slot: slot as u8 };
            facts.push(TextFact { identity, label: Some(0.0), hash });
        }
    }
    facts
}

fn trainer_config(loss: LossConfig, checkpoint_layers: bool) -> TrainerConfig {
    TrainerConfig {
        loss,
        optimizer: OptimizerConfig::default(),
        schedule: Schedule { kind: ScheduleKind::Constant, warmup_steps: 0 },
        total_steps: 1,
        max_gradient_norm: None,
        seed: 0,
        // The chunk was cut by the caller.
        token_budget_per_chunk: usize::MAX,
        checkpoint_layers,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_pass_is_that_of_the_real_lengths() {
        let shape = |lengths: &[usize]| PassShape::of_embedding(DeviceKind::Cpu, lengths.iter().copied());
        assert_eq!(shape(&[]), PassShape::default());
        assert_eq!(shape(&[9, 9, 512]), PassShape { texts: 3, tokens: 530 });
        assert_eq!(shape(&[600, 600, 3, 3]), PassShape { texts: 3, tokens: 606 });
        let step = StepShape::of(2, &[512, 9, 512, 9], 512);
        assert_eq!((step.chunk, step.keeps_tape), (PassShape { texts: 1, tokens: 512 }, false));
        let step = step.max(StepShape::of(1, &[9, 9], 512));
        assert_eq!((step.chunk, step.keeps_tape), (PassShape { texts: 2, tokens: 512 }, true));
        assert_eq!((step.rows, step.texts), (2, 4));
    }

    #[test]
    fn texts_of_a_shape_have_its_sizes() {
        for (texts, tokens, longest) in [(3, 10, 4), (1, 9, 4), (0, 0, 4), (5, 5, 1)] {
            let made = PassShape { texts, tokens }.to_texts(longest);
            assert_eq!(made.iter().map(|text| text.ids.len()).sum::<usize>(), tokens);
            assert!(made.len() >= texts && made.iter().all(|text| (1..=longest).contains(&text.ids.len())));
        }
    }
}
