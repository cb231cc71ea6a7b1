//! Learning: losses over all embeddings of a step, learning rates, the trainer and its state.

mod infonce;
mod loss;
mod schedule;
mod state;
mod trainer;

pub use loss::{LossConfig, LossValue, TextFact};
pub use schedule::{Schedule, ScheduleKind};
pub use state::{NamedTensor, TrainerState};
pub use trainer::{Embedded, OptimizerConfig, StepReport, TrainRow, Trainer, TrainerConfig};
