//! `kind = "train"`: adapter, data, loss, optimizer, schedule, checkpoints.

use super::evaluate::Task;
use super::model::{Model, Quantization};

/// A train job.
#[derive(Debug, Clone, PartialEq)]
pub struct Train {
    pub model: Model,
    pub adapter: Adapter,
    pub data: Data,
    pub loss: Loss,
    pub optimizer: Optimizer,
    pub schedule: Schedule,
    pub steps: Steps,
    pub checkpoint: Checkpoint,
    /// `[[evaluate]]`, measured before and after training.
    pub evaluate: Vec<Task>,
}

/// `[adapter]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    pub kind: AdapterKind,
    /// Default 8.
    pub rank: u32,
    /// Default 16.
    pub alpha: f32,
    /// Probability, 0 ≤ p < 1; default 0.05.
    pub dropout: f32,
    /// Scale alpha/√rank instead of alpha/rank.
    pub rslora: bool,
    pub targets: Targets,
}

/// What is trained, on which base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdapterKind {
    /// Low-rank adapters on the full-precision base.
    Lora,
    /// Low-rank adapters on a quantized base (`quantization = "nf4"`, `double_quantization = true`).
    Qlora(Quantization),
}

/// `targets = "all-linear"` or `targets = ["query", "value"]` (PEFT's module names, matched by suffix).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    AllLinear,
    Modules(Vec<String>),
}

/// `[data]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Data {
    /// JSONL.
    pub train: String,
    pub validation: Option<String>,
    /// Name of the prompt put before the first text of a row (`anchor_prompt = "query"`).
    pub anchor_prompt: Option<String>,
    /// Name of the prompt put before every other text of a row.
    pub other_prompt: Option<String>,
}

/// `[loss]`.
#[derive(Debug, Clone, PartialEq)]
pub enum Loss {
    /// log(1 + Σ exp(scale·(cos_i − cos_j))) over pairs with score_i < score_j. Scale default 20.
    Cosent { scale: f32 },
    /// Softmax cross-entropy over in-batch and hard negatives. Temperature default 0.05.
    Infonce {
        temperature: f32,
        symmetric: bool,
        in_batch_negatives: bool,
        false_negative_margin: Option<f32>,
    },
    /// Mean squared error of cosine against score.
    CosineSimilarity,
}

/// `[optimizer]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Optimizer {
    /// Default 1e-4.
    pub learning_rate: f64,
    /// Default 0.01.
    pub weight_decay: f64,
    /// Default 0.9.
    pub beta1: f64,
    /// Default 0.999.
    pub beta2: f64,
    /// Default 1e-8.
    pub epsilon: f64,
    /// Clip the global L2 norm; default 1.0; 0 turns it off.
    pub max_gradient_norm: f64,
}

/// `[schedule]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    pub kind: ScheduleKind,
    /// Share of all steps (`warmup = 0.1`) or steps (`warmup = "50 steps"`); default 0.
    pub warmup: Warmup,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScheduleKind {
    Linear,
    Cosine,
    Constant,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Warmup {
    Ratio(f64),
    Steps(u64),
}

/// `[train]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Steps {
    /// Default 1.
    pub epochs: u32,
    /// Stop after so many optimizer steps, whatever `epochs` says.
    pub max_steps: Option<u64>,
    /// Rows a micro-batch; default 32.
    pub batch_size: u32,
    /// Micro-batches a step; default 1.
    pub accumulation_steps: u32,
    /// Default 42.
    pub seed: u64,
    /// A new order every epoch; default true. False: file order.
    pub shuffle: bool,
    /// Leave out the last, smaller batch of an epoch; default false.
    pub drop_last: bool,
    /// Tokens of one chunk of forward and backward; more are split and recomputed (GradCache). Default 16384.
    pub token_budget: u32,
    /// Run layers again on the way back instead of keeping what they computed. Absent: as the model's family needs.
    pub gradient_checkpointing: Option<bool>,
    /// Log every so many steps; default 10.
    pub log_every: u64,
}

/// `[checkpoint]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// `every = "100 steps"` or `"1 epoch"`; default 100 steps.
    pub every: Every,
    /// Newest ones kept; default 3.
    pub keep: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Every {
    Steps(u64),
    Epochs(u64),
}
