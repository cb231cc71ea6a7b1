//! A trained model as read from its files: architecture, pooling, weights by name; and texts packed for it.

mod batch;
mod config;
mod decoder;
mod module;
pub(crate) mod pooling;
pub mod shapes;
pub(crate) mod weights;

pub use batch::{PackedBatch, RowIdentity, TokenizedText, split_by_budget};
pub use config::ModelConfig;
pub use decoder::Decoder;
pub use module::Role;
pub use pooling::{Pooling, pooling_folder};
