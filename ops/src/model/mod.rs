//! A trained model as read from its files: architecture, pooling, weights by name; and texts packed for it.

mod batch;
mod config;
pub(crate) mod pooling;
mod shapes;
pub(crate) mod weights;

pub use batch::{PackedBatch, RowIdentity, TokenizedText, split_by_budget};
pub use config::ModelConfig;
pub use pooling::{Pooling, pooling_folder};
pub use shapes::{SHAPES, shape};
