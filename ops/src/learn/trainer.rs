//! The trainer: embeds the texts of a step, takes the loss over all of them, walks back, and moves the adapter.
//!
//! ```text
//! one node       step(rows)  =  accumulate(rows)* → apply()
//! several nodes  embed(rows, keep_tape) → gather embeddings and facts → loss(all) → backward(own part)
//!                → sum gradients() over nodes in rank order → set_gradients() → apply()
//! ```
//!
//! Texts beyond the token budget are embedded chunk by chunk without a tape and run again for the way back
//! (GradCache, Gao et al. 2021): dropout is a function of a text's name, so both runs agree bit for bit. Accumulation
//! averages over the rows of a step and adds no negatives. No input or output happens here.

use std::ops::Range;

use motley_backends::{Buffer, Category};
use motley_kernels::{adamw, sum_squares};

use super::loss::{LossConfig, LossValue, TextFact};
use super::schedule::Schedule;
use super::state::TrainerState;
use crate::device::{Tensor, elements};
use crate::encoder::{Backward, DeviceBatch, Draws, Pass};
use crate::model::split_by_budget;
use crate::tape::{Tape, Value};
use crate::{Adapter, Encoder, Error, PackedBatch, Result, RowIdentity, TokenizedText};

/// A row to learn from.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainRow {
    /// Its number in the data: the name its random draws depend on.
    pub sample: u32,
    /// Anchor, its partner, then hard negatives.
    pub texts: Vec<TokenizedText>,
    pub label: Option<f32>,
}

/// AdamW (Loshchilov and Hutter 2019) with PyTorch's defaults but for the learning rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimizerConfig {
    pub learning_rate: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        OptimizerConfig { learning_rate: 1e-4, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct TrainerConfig {
    pub loss: LossConfig,
    pub optimizer: OptimizerConfig,
    pub schedule: Schedule,
    /// Optimizer steps of the whole run.
    pub total_steps: u64,
    /// Gradients are scaled down to this norm; absent: never.
    pub max_gradient_norm: Option<f64>,
    pub seed: u64,
    /// Tokens of one pass; more are cut into chunks and run twice. Fewer where the device binds no more at once.
    pub token_budget_per_chunk: usize,
    /// Keep only each layer's input on the way forth and run the layer again on the way back.
    pub checkpoint_layers: bool,
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: u64,
    /// Mean over the rows of the step.
    pub loss: f64,
    /// Before clipping.
    pub gradient_norm: f64,
    pub learning_rate: f64,
    /// Tokens of this node's texts.
    pub tokens: u64,
}

/// Texts of this node, embedded.
pub struct Embedded {
    /// f32 [texts, hidden]: row after row, each row's texts in their order.
    pub embeddings: Vec<f32>,
    /// One for each text.
    pub facts: Vec<TextFact>,
    chunks: Vec<Chunk>,
}

/// Texts of one pass.
struct Chunk {
    texts: Range<usize>,
    packed: PackedBatch,
    kept: Option<(DeviceBatch, Tape, Value)>,
}

/// An encoder with an adapter that learns.
pub struct Trainer {
    encoder: Encoder,
    config: TrainerConfig,
    /// Flat, as the adapter's parameters.
    gradients: Buffer,
    pub(super) moments: [Buffer; 2],
    pub(super) step: u64,
    pending: Pending,
}

/// What has been added to the gradients since the last step.
#[derive(Debug, Clone, Copy, Default)]
struct Pending {
    /// Rows of the first micro-batch, whose gradients were added with weight 1; the others' weights are relative.
    first_rows: usize,
    rows: usize,
    /// Σ loss·rows
    loss: f64,
    tokens: u64,
}

/// PyTorch's `clip_grad_norm_` adds this to the norm.
const CLIP_EPSILON: f64 = 1e-6;

impl Trainer {
    /// Attaches `adapter` to `encoder` and starts at step 0.
    ///
    /// # Errors
    /// Settings out of range, no memory.
    pub fn new(mut encoder: Encoder, adapter: Adapter, mut config: TrainerConfig) -> Result<Self> {
        config.check()?;
        config.token_budget_per_chunk = config.token_budget_per_chunk.min(encoder.bound_tokens());
        let (device, count) = (encoder.device().clone(), adapter.count);
        let gradients = device.zeros(count, Category::Adapter)?;
        let moments = [device.zeros(count, Category::Optimizer)?, device.zeros(count, Category::Optimizer)?];
        encoder.attach(adapter);
        Ok(Trainer { encoder, config, gradients, moments, step: 0, pending: Pending::default() })
    }

    /// The model with the adapter as it stands; its `embed` uses no dropout.
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    pub fn adapter(&self) -> &Adapter {
        self.encoder.adapter().expect("attached in `new`, and nothing detaches it")
    }

    /// One optimizer step on these rows.
    ///
    /// # Errors
    /// As [`Trainer::accumulate`] and [`Trainer::apply`].
    pub fn step(&mut self, rows: &[TrainRow]) -> Result<StepReport> {
        self.accumulate(rows)?;
        self.apply()
    }

    /// Adds the gradients of a micro-batch and returns its loss.
    ///
    /// # Errors
    /// Rows the loss cannot use, texts the model cannot take, a loss that is no number, a device that failed.
    pub fn accumulate(&mut self, rows: &[TrainRow]) -> Result<f64> {
        let tokens: usize = rows.iter().flat_map(|row| &row.texts).map(|text| text.ids.len()).sum();
        let embedded = self.embed(rows, tokens <= self.config.token_budget_per_chunk)?;
        let value = self.loss(&embedded.embeddings, &embedded.facts)?;
        self.backward(embedded, &value, 0)?;
        Ok(value.loss)
    }

    /// Embeds this node's rows. `keep_tape` keeps what the way back needs instead of running the texts again.
    ///
    /// # Errors
    /// As [`Encoder::embed`].
    pub fn embed(&self, rows: &[TrainRow], keep_tape: bool) -> Result<Embedded> {
        let (mut texts, mut facts) = (Vec::new(), Vec::new());
        for row in rows {
            for (slot, text) in row.texts.iter().enumerate() {
                let slot = u8::try_from(slot).map_err(|_| Error::Row {
                    sample: row.sample,
                    found: format!("{} texts", row.texts.len()),
                    expected: "at most 256 texts",
                })?;
                let identity = RowIdentity { sample: row.sample, slot };
                texts.push(text);
                facts.push(TextFact { identity, label: row.label, hash: hash(&text.ids) });
            }
        }
        let device = self.encoder.device();
        let mut embeddings = Vec::with_capacity(texts.len() * self.encoder.hidden());
        let mut chunks = Vec::new();
        for run in
            split_by_budget(texts.iter().map(|text| text.ids.len()), self.config.token_budget_per_chunk)
        {
            let names: Vec<RowIdentity> = facts[run.clone()].iter().map(|fact| fact.identity).collect();
            let packed = PackedBatch::new(self.encoder.config(), &texts[run.clone()], &names)?;
            let (part, kept) = device.in_pool(|| -> Result<_> {
                let (batch, value, tape) = self.forward(&packed, keep_tape)?;
                let part = device.download(value.tensor.bound(), value.tensor.count())?;
                Ok((part, tape.map(|tape| (batch, tape, value))))
            })?;
            embeddings.extend(part);
            chunks.push(Chunk { texts: run, packed, kept });
        }
        Ok(Embedded { embeddings, facts, chunks })
    }

    /// The loss of all embeddings of a step (this node's, or those gathered from all in rank order).
    ///
    /// # Errors
    /// Rows the loss cannot use, a loss that is no number, a device that failed.
    pub fn loss(&self, embeddings: &[f32], facts: &[TextFact]) -> Result<LossValue> {
        let device = self.encoder.device();
        let width = self.encoder.hidden();
        let value = device.in_pool(|| self.config.loss.evaluate(device, (embeddings, width), facts))?;
        self.finite("loss", value.loss)?;
        Ok(value)
    }

    /// Adds the parameters' gradients of this node's texts, which are those from `first_text` on in `loss`.
    ///
    /// # Errors
    /// A part that is not in `loss`, a device that failed.
    pub fn backward(&mut self, embedded: Embedded, loss: &LossValue, first_text: usize) -> Result<()> {
        let width = self.encoder.hidden();
        let range = first_text * width..(first_text + embedded.facts.len()) * width;
        let gradient = loss.gradient.get(range).ok_or(Error::EmbeddingCount {
            given: loss.gradient.len() / width,
            expected: first_text + embedded.facts.len(),
        })?;
        let first_rows = if self.pending.rows == 0 { loss.rows } else { self.pending.first_rows };
        let weight = loss.rows as f32 / first_rows as f32;
        let mut tokens = 0;
        for chunk in embedded.chunks {
            tokens += chunk.packed.tokens() as u64;
            let part = &gradient[chunk.texts.start * width..chunk.texts.end * width];
            let part: Vec<f32> = part.iter().map(|value| value * weight).collect();
            self.encoder.device().in_pool(|| self.backward_chunk(chunk, &part))?;
        }
        let Pending { rows, loss: sum, tokens: before, .. } = self.pending;
        let sum = sum + loss.loss * loss.rows as f64;
        self.pending = Pending { first_rows, rows: rows + loss.rows, loss: sum, tokens: before + tokens };
        Ok(())
    }

    /// The sum of gradients so far, flat as the adapter's parameters; what nodes add up.
    ///
    /// # Errors
    /// The device failed.
    pub fn gradients(&self) -> Result<Vec<f32>> {
        self.encoder.device().download(self.gradients.all(), self.adapter().count)
    }

    /// Puts the sum over all nodes in the place of this node's gradients.
    ///
    /// # Errors
    /// Another length, a device that failed.
    pub fn set_gradients(&mut self, gradients: &[f32]) -> Result<()> {
        let expected = self.adapter().count;
        if gradients.len() != expected {
            return Err(Error::State { problem: format!("{} gradients of {expected}", gradients.len()) });
        }
        Ok(self.encoder.device().backend.upload(bytemuck::cast_slice(gradients), self.gradients.all())?)
    }

    /// Clips, moves the adapter, forgets the gradients.
    ///
    /// # Errors
    /// Nothing was accumulated, a gradient is no number (the adapter is then as before), a device that failed.
    pub fn apply(&mut self) -> Result<StepReport> {
        let pending = std::mem::take(&mut self.pending);
        if pending.rows == 0 {
            return Err(Error::NoRows);
        }
        let device = self.encoder.device().clone();
        let report = device.in_pool(|| self.apply_pending(pending));
        device.fill(self.gradients.all(), self.adapter().count, 0.0)?;
        let report = report?;
        self.step = report.step;
        Ok(report)
    }

    /// Everything a later run needs to go on bit for bit.
    ///
    /// # Errors
    /// Gradients are pending, a device that failed.
    pub fn state(&self) -> Result<TrainerState> {
        if self.pending.rows > 0 {
            return Err(Error::State { problem: "a step is half done".to_owned() });
        }
        TrainerState::of(self)
    }

    /// Goes on from `state`.
    ///
    /// # Errors
    /// The state is another model's or adapter's; a device that failed.
    pub fn restore(&mut self, state: &TrainerState) -> Result<()> {
        state.put_into(self)?;
        self.pending = Pending::default();
        let count = self.adapter().count;
        self.encoder.device().fill(self.gradients.all(), count, 0.0)
    }

    fn draws(&self) -> Draws {
        Draws { seed: self.config.seed, step: self.step as u32 }
    }

    fn forward(&self, packed: &PackedBatch, keep_tape: bool) -> Result<(DeviceBatch, Value, Option<Tape>)> {
        let batch = DeviceBatch::upload(self.encoder.device(), packed)?;
        let tape = keep_tape.then(Tape::default);
        let mut pass = Pass { encoder: &self.encoder, batch: &batch, draws: Some(self.draws()), tape };
        let value = pass.run(self.config.checkpoint_layers && keep_tape)?;
        let tape = pass.tape.take();
        Ok((batch, value, tape))
    }

    fn backward_chunk(&self, chunk: Chunk, gradient: &[f32]) -> Result<()> {
        let (batch, tape, value) = match chunk.kept {
            Some(kept) => kept,
            None => {
                let (batch, value, tape) = self.forward(&chunk.packed, true)?;
                (batch, tape.expect("a tape was asked for"), value)
            }
        };
        let device = self.encoder.device();
        let upstream: Tensor =
            device.upload_tensor(gradient, self.encoder.hidden(), Category::Activations)?;
        let draws = self.draws();
        let backward = Backward { encoder: &self.encoder, batch: &batch, draws, parameters: &self.gradients };
        Encoder::backward(&backward, tape, &value, upstream)
    }

    fn apply_pending(&self, pending: Pending) -> Result<StepReport> {
        let (device, count) = (self.encoder.device(), self.adapter().count);
        let squares = self.sum_of_squares(count)?;
        // Gradients were weighted relative to the first micro-batch; the mean is over all rows.
        let mean = pending.first_rows as f64 / pending.rows as f64;
        let norm = squares.sqrt() * mean;
        self.finite("gradient norm", norm)?;
        let clip = self.config.max_gradient_norm.map_or(1.0, |most| (most / (norm + CLIP_EPSILON)).min(1.0));
        let optimizer = &self.config.optimizer;
        let rate = optimizer.learning_rate * self.config.schedule.factor(self.step, self.config.total_steps);
        let step = self.step + 1;
        let power = i32::try_from(step).unwrap_or(i32::MAX);
        let args = adamw::Args {
            count: 0,
            decay: (1.0 - rate * optimizer.weight_decay) as f32,
            beta1: optimizer.beta1 as f32,
            beta2: optimizer.beta2 as f32,
            step_size: (rate / (1.0 - optimizer.beta1.powi(power))) as f32,
            correction2_root: (1.0 - optimizer.beta2.powi(power)).sqrt() as f32,
            epsilon: optimizer.epsilon as f32,
            gradient_scale: (clip * mean) as f32,
        };
        let [first, second] = &self.moments;
        for part in device.bound_parts(count) {
            let args = adamw::Args { count: part.len() as u32, ..args };
            let bindings = [&self.gradients, &self.adapter().parameters, first, second];
            let bindings = bindings.map(|flat| elements(flat, part.start, part.len()));
            device.launch(&adamw::STEP, &args, &bindings)?;
        }
        let loss = pending.loss / pending.rows as f64;
        Ok(StepReport { step, loss, gradient_norm: norm, learning_rate: rate, tokens: pending.tokens })
    }

    /// Of the gradients.
    fn sum_of_squares(&self, count: usize) -> Result<f64> {
        let device = self.encoder.device();
        let sum = device.wide(1, 1)?;
        let mut total = 0.0;
        for part in device.bound_parts(count) {
            let args = sum_squares::Args { count: part.len() as u32 };
            let part = elements(&self.gradients, part.start, part.len());
            device.launch(&sum_squares::FORWARD, &args, &[part, sum.bound()])?;
            total += f64::from(device.download(sum.bound(), 1)?[0]);
        }
        Ok(total)
    }

    fn finite(&self, quantity: &'static str, value: f64) -> Result<()> {
        if value.is_finite() { Ok(()) } else { Err(Error::Numerics { step: self.step + 1, quantity, value }) }
    }
}

impl TrainerConfig {
    fn check(&self) -> Result<()> {
        self.loss.check()?;
        let OptimizerConfig { learning_rate, beta1, beta2, epsilon, weight_decay } = self.optimizer;
        let not_negative = |value: f64| value.is_finite() && value >= 0.0;
        let checks = [
            ("learning_rate", learning_rate, not_negative(learning_rate), "a number that is not negative"),
            ("beta1", beta1, (0.0..1.0).contains(&beta1), "0 to below 1"),
            ("beta2", beta2, (0.0..1.0).contains(&beta2), "0 to below 1"),
            ("epsilon", epsilon, not_negative(epsilon) && epsilon > 0.0, "a positive number"),
            ("weight_decay", weight_decay, not_negative(weight_decay), "a number that is not negative"),
            (
                "token_budget",
                self.token_budget_per_chunk as f64,
                self.token_budget_per_chunk > 0,
                "at least 1",
            ),
            (
                "max_gradient_norm",
                self.max_gradient_norm.unwrap_or(1.0),
                self.max_gradient_norm.is_none_or(|most| most > 0.0),
                "a positive number",
            ),
        ];
        match checks.into_iter().find(|(_, _, fits, _)| !fits) {
            None => Ok(()),
            Some((setting, found, _, expected)) => Err(Error::Setting { setting, found, expected }),
        }
    }
}

/// FNV-1a over the ids' bytes: the same on every node and in every run.
fn hash(ids: &[u32]) -> u64 {
    let bytes = ids.iter().flat_map(|id| id.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
