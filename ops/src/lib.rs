//! Models that learn: encoders on a device, low-rank adapters, losses, optimizer, trainer, and what a model is worth.
//!
//! ```text
//! model     config.json, pooling, weights by name, texts packed without padding
//! device    tensors on a backend, one function for each kernel entry
//! tape      what a forward pass leaves behind, and the way back through it
//! encoder   the forward pass, with and without a tape
//! adapter   LoRA: targets, factors, PEFT's files
//! learn     losses, schedules, the trainer
//! metric    what a model is worth
//! ```
//!
//! Nothing here opens a file, a socket or a clock: bytes and texts come in, bytes and numbers go out.

mod error;
pub mod metric;
pub mod model;

pub use error::{Error, Result};
pub use model::{ModelConfig, PackedBatch, Pooling, RowIdentity, TokenizedText};
