//! Memory of a training step or of embedding, planned: the model itself runs on the backend that only counts.

use motley_backends::{DeviceRequest, MemoryReport, open};

use crate::learn::{LossConfig, OptimizerConfig, Schedule, ScheduleKind, TrainRow, Trainer, TrainerConfig};
use crate::{Adapter, Encoder, LoadOptions, LoraConfig, ModelConfig, Result, TokenizedText};

/// What shall be run.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanRequest {
    pub options: LoadOptions,
    /// Absent: embedding without an adapter.
    pub adapter: Option<LoraConfig>,
    /// Rows of a micro-batch.
    pub rows: usize,
    pub texts_per_row: usize,
    pub tokens_per_text: usize,
    pub token_budget_per_chunk: usize,
    pub checkpoint_layers: bool,
}

/// Live and peak bytes by category of loading a model and running one step of the asked shape.
///
/// # Errors
/// A shape that the model cannot take.
pub fn plan_memory(model: &ModelConfig, request: &PlanRequest) -> Result<MemoryReport> {
    let backend = open(&DeviceRequest { backend: "null".to_owned(), ..DeviceRequest::default() })?;
    let encoder = Encoder::blank(backend.clone(), model, &request.options)?;
    let text = TokenizedText { ids: vec![0; request.tokens_per_text], type_ids: Vec::new() };
    match &request.adapter {
        None => {
            encoder.embed(&vec![text; request.rows * request.texts_per_row])?;
        }
        Some(config) => {
            let adapter = Adapter::new(&encoder, config, 0)?;
            let config = TrainerConfig {
                loss: LossConfig::Infonce {
                    temperature: 0.05,
                    symmetric: true,
                    in_batch_negatives: true,
                    false_negative_margin: None,
                    mask_duplicates: false,
                },
                optimizer: OptimizerConfig::default(),
                schedule: Schedule { kind: ScheduleKind::Constant, warmup_steps: 0 },
                total_steps: 1,
                max_gradient_norm: None,
                seed: 0,
                token_budget_per_chunk: request.token_budget_per_chunk,
                checkpoint_layers: request.checkpoint_layers,
            };
            let texts = vec![text; request.texts_per_row];
            let rows: Vec<TrainRow> = (0..request.rows as u32)
                .map(|sample| TrainRow { sample, texts: texts.clone(), label: None })
                .collect();
            Trainer::new(encoder, adapter, config)?.step(&rows)?;
        }
    }
    Ok(backend.memory())
}
