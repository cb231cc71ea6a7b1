//! How much device memory a job needs, by running the model on the backend that only counts.

use motley_backends::MemoryReport;
use motley_ops::{LoadOptions, LoraConfig, ModelConfig, ModelDropout, PlanRequest};
use motley_scheduler_core::document::{Document, Quantization, Train, Workload};
use motley_scheduler_core::unit::Bytes;

use super::WorkloadError;
use super::train::settings::{lora_config, quantization};

/// What is run with one model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shape {
    pub(crate) quantization: Option<Quantization>,
    /// Absent: embedding only.
    pub(crate) adapter: Option<LoraConfig>,
    pub(crate) rows: usize,
    pub(crate) texts_per_row: usize,
    pub(crate) tokens_per_text: usize,
    pub(crate) token_budget: usize,
}

/// Rounded up to this: allocators round too, and a figure such as 2.0 GiB is easier to speak of.
const ROUNDING: u64 = 16 << 20;

/// Texts planned for where nothing is known of the data: one window of a long-running embedding.
const EMBEDDED_TEXTS: usize = 64;

/// Device memory that a document's job needs, one figure for each of its `[[resources]]`. `config_json` is the text
/// of the model's config.json. Without the data at hand every text is taken to be as long as allowed.
///
/// # Errors
/// A model that is not supported.
pub fn plan_memory(document: &Document, config_json: &str) -> Result<Vec<Bytes>, WorkloadError> {
    let model = ModelConfig::parse(config_json)?;
    let longest = document.model().max_length.map_or(model.max_positions(), |length| length as usize);
    let longest = longest.clamp(1, model.max_positions());
    let needed = match &document.workload {
        Workload::Train(train) => {
            // Hard negatives are not known before the data is read.
            let worst = TrainingLengths { texts_per_row: 2, tokens_per_text: longest };
            plan_training(train, &model, worst)?
        }
        Workload::Evaluate(evaluate) => plan_embedding(&model, evaluate.quantization, longest)?,
        Workload::Serve(serve) => plan_embedding(&model, serve.quantization, longest)?,
    };
    Ok(vec![needed; document.resources.len()])
}

/// How long the rows of a training are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TrainingLengths {
    pub(crate) texts_per_row: usize,
    /// On average over the texts of the largest batch.
    pub(crate) tokens_per_text: usize,
}

/// Training, and the measuring before and after it.
pub(crate) fn plan_training(
    train: &Train,
    model: &ModelConfig,
    lengths: TrainingLengths,
) -> Result<Bytes, WorkloadError> {
    let shape = Shape {
        quantization: quantization(&train.adapter),
        adapter: Some(lora_config(&train.adapter)),
        rows: train.steps.batch_size as usize,
        texts_per_row: lengths.texts_per_row,
        tokens_per_text: lengths.tokens_per_text,
        token_budget: train.steps.token_budget as usize,
    };
    let training = plan(model, &shape)?;
    let measuring = if train.evaluate.is_empty() {
        Bytes(0)
    } else {
        // A quantized training is measured on the full-precision base too.
        plan_embedding(model, None, lengths.tokens_per_text)?
    };
    Ok(training.max(measuring))
}

fn plan_embedding(
    model: &ModelConfig,
    quantization: Option<Quantization>,
    tokens_per_text: usize,
) -> Result<Bytes, WorkloadError> {
    let shape = Shape {
        quantization,
        adapter: None,
        rows: EMBEDDED_TEXTS,
        texts_per_row: 1,
        tokens_per_text,
        token_budget: usize::MAX,
    };
    plan(model, &shape)
}

fn plan(model: &ModelConfig, shape: &Shape) -> Result<Bytes, WorkloadError> {
    let request = PlanRequest {
        options: LoadOptions {
            quantization: shape.quantization.map(|Quantization::Nf4 { double_quantization }| {
                motley_ops::Quantization { double: double_quantization }
            }),
            normalize: None,
            dropout: ModelDropout::Off,
        },
        adapter: shape.adapter.clone(),
        rows: shape.rows.max(1),
        texts_per_row: shape.texts_per_row.max(1),
        tokens_per_text: shape.tokens_per_text.clamp(1, model.max_positions()),
        token_budget_per_chunk: shape.token_budget,
        checkpoint_layers: false,
    };
    let report: MemoryReport = motley_ops::plan_memory(model, &request)?;
    Ok(Bytes(report.peak.next_multiple_of(ROUNDING)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6,
        "num_attention_heads": 12, "intermediate_size": 1536, "vocab_size": 30522,
        "max_position_embeddings": 512}"#;

    fn needed(change: (&str, &str)) -> u64 {
        let text = r#"version = 1
kind = "train"
name = "x"
[model]
source = "a/b"
max_length = 128
[adapter]
kind = "qlora"
[data]
train = "t.jsonl"
[loss]
kind = "cosent"
[train]
batch_size = 32
token_budget = 16384
"#;
        let document = Document::parse(&text.replace(change.0, change.1)).unwrap();
        plan_memory(&document, CONFIG).unwrap()[0].0
    }

    #[test]
    fn larger_batches_need_more_and_smaller_budgets_less() {
        let plain = needed(("", ""));
        assert!(plain > 100 << 20 && plain < 8 << 30, "{plain}");
        assert!(needed(("batch_size = 32", "batch_size = 128")) > plain);
        assert!(needed(("token_budget = 16384", "token_budget = 1024")) < plain);
        assert!(needed(("kind = \"qlora\"", "kind = \"lora\"")) > plain);
    }
}
