//! Models that learn: encoders on a device, low-rank adapters, losses, optimizer, trainer, and what a model is worth.
//!
//! ```text
//! model     config.json, pooling, weights by name, texts packed without padding
//! device    tensors on a backend, short ways to make, launch and read
//! tape      what a forward pass leaves behind for the way back
//! encoder   forward and backward through a model, with an adapter attached or not
//! adapter   LoRA: targets, factors, PEFT's files
//! learn     losses, schedules, the trainer
//! plan      memory of a run, counted without running it
//! flops     arithmetic of a pass, counted
//! metric    what a model is worth
//! ```
//!
//! Nothing here opens a file, a socket or a clock: bytes and texts come in, bytes and numbers go out.

mod adapter;
mod device;
mod encoder;
mod error;
mod flops;
mod learn;
pub mod metric;
mod model;
mod plan;
mod tape;

pub use adapter::{Adapter, BaseIdentity, LoraConfig, Targets};
pub use encoder::{Encoder, LoadOptions, ModelDropout, ModelFiles, Quantization, pass_tokens};
pub use error::{Error, Result};
pub use flops::Work;
pub use learn::{
    Embedded, LossConfig, LossValue, NamedTensor, OptimizerConfig, Schedule, ScheduleKind, StepReport,
    TextFact, TrainRow, Trainer, TrainerConfig, TrainerState,
};
pub use model::shapes;
pub use model::{
    Decoder, ModelConfig, PackedBatch, Pooling, Role, RowIdentity, TokenizedText, pooling_folder,
    split_by_budget,
};
pub use plan::{PassShape, PlanRequest, PlannedDevice, PlannedModel, StepShape, plan_memory};
