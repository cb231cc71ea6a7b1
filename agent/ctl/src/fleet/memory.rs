//! `memory = "auto"`: how much device memory a job is leased.
//!
//! ```text
//! weights       the size of the weights file (NF4: 0.6 bytes a parameter, 4.5 bits and the unquantized rest)
//! activations   tokens × layers × (10·hidden + 2·intermediate) × 4 bytes, kept for the backward pass (train),
//!               or of one layer (evaluate, serve)
//! workspace     a fixed share for tokenizer, buffers and runtime
//! ```
//!
//! Where the model's config cannot be read here (a hub id that is not in a folder), a documented default stands in
//! for a base-sized encoder: nothing is downloaded in order to submit.

use std::path::Path;

use motley_scheduler_core::document::train::AdapterKind;
use motley_scheduler_core::document::{Document, Memory, Resources, Source, Workload};
use motley_scheduler_core::unit::Bytes;
use serde_json::Value;

use crate::failure::Failure;

/// Tokenizer, buffers, code: measured at some 100 MiB for a small encoder.
const WORKSPACE: u64 = 256 << 20;
/// Shape assumed for a model that is not here: a BERT base.
const DEFAULT_SHAPE: Shape =
    Shape { hidden: 768, layers: 12, intermediate: 3072, positions: 512, weights: 440 << 20 };
/// Texts of a training row: an anchor, a positive and sometimes a negative.
const TEXTS_PER_ROW: u64 = 2;

/// What decides about memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    hidden: u64,
    layers: u64,
    intermediate: u64,
    positions: u64,
    /// Bytes of the weights file.
    weights: u64,
}

/// One figure for each alternative of `[resources]`.
///
/// # Errors
/// The model's config is there but cannot be read.
pub fn resolve(document: &Document, folder: &Path) -> Result<Vec<Bytes>, Failure> {
    let shape = match &document.model().source {
        Source::File { path } => read_shape(&folder.join(path))?,
        _ => DEFAULT_SHAPE,
    };
    let figure = |resources: &Resources| match resources.memory {
        Memory::Exact(bytes) => bytes,
        Memory::Auto => estimate(document, shape),
    };
    Ok(document.resources.iter().map(figure).collect())
}

fn estimate(document: &Document, shape: Shape) -> Bytes {
    let per_token_and_layer = (10 * shape.hidden + 2 * shape.intermediate) * 4;
    let longest =
        document.model().max_length.map_or(shape.positions, |length| shape.positions.min(length.into()));
    let bytes = match &document.workload {
        Workload::Train(train) => {
            let rows = u64::from(train.steps.batch_size) * TEXTS_PER_ROW;
            let tokens = (rows * longest).min(train.steps.token_budget.into()).max(longest);
            let weights = match train.adapter.kind {
                AdapterKind::Lora => shape.weights,
                // Prepared from the full weights, which are mapped and may be evicted.
                AdapterKind::Qlora(_) => shape.weights * 15 / 100,
                // Weights, gradients and two moments.
                AdapterKind::Full => shape.weights * 4,
            };
            weights + tokens * shape.layers * per_token_and_layer
        }
        Workload::Evaluate(_) => shape.weights + 4096_u64.max(longest) * per_token_and_layer,
        Workload::Serve(serve) => {
            shape.weights + u64::from(serve.batch.token_budget).max(longest) * per_token_and_layer
        }
    };
    Bytes((bytes + WORKSPACE).next_multiple_of(1 << 20))
}

fn read_shape(model: &Path) -> Result<Shape, Failure> {
    let path = model.join("config.json");
    // A folder without config.json is refused with the list of what it lacks, by the code that knows model folders.
    let Ok(text) = std::fs::read_to_string(&path) else { return Ok(DEFAULT_SHAPE) };
    let config: Value = serde_json::from_str(&text)
        .map_err(|error| Failure::usage(format!("{} cannot be read: {error}", path.display())))?;
    let number = |name: &str, default: u64| config.get(name).and_then(Value::as_u64).unwrap_or(default);
    let hidden = number("hidden_size", DEFAULT_SHAPE.hidden);
    Ok(Shape {
        hidden,
        layers: number("num_hidden_layers", DEFAULT_SHAPE.layers),
        intermediate: number("intermediate_size", 4 * hidden),
        positions: number("max_position_embeddings", DEFAULT_SHAPE.positions),
        weights: std::fs::metadata(model.join("model.safetensors"))
            .map_or(DEFAULT_SHAPE.weights, |data| data.len()),
    })
}
