//! How much device memory a job needs, by running the model on the backend that only counts.
//!
//! ```text
//! plan_memory      before a job is submitted: from document and what of model and data is at hand
//! plan_training    before a training starts: from the lengths of its own texts, batch by batch
//! plan_embedding   before an evaluation or a server starts
//! ```

use std::path::Path;

use motley_backends::{Backend, DeviceKind, Error, Precision};
use motley_ops::{
    LoadOptions, LoraConfig, ModelDropout, ModelFiles, PassShape, PlanRequest, PlannedDevice, PlannedModel,
    StepShape,
};
use motley_scheduler_core::document::model::AdapterBase;
use motley_scheduler_core::document::{
    AdapterReference, BackendKind, Document, ModelPrecision, Quantization, Source, Train, Workload,
};
use motley_scheduler_core::unit::Bytes;

use super::WorkloadError;
use super::identity::{AdapterFiles, Recipe};
use super::lengths::{Batch, ByteBound, RowLengths};
use super::order::DataOrder;
use super::rows::{RowFile, RowForm};
use super::train::settings::{checkpoint_layers, lora_config, loss, quantization};
use super::train::validation::WINDOW_ROWS;
use crate::devices::choose::device_kind;
use crate::models::ModelAtHand;

/// Rounded up to this, so that figures are easy to speak of.
const ROUNDING: u64 = 1 << 20;

/// Rank assumed for an adapter that is not here: four times what is usual.
const ASSUMED_RANK: usize = 64;

/// A training and the measuring around it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TrainingShape {
    pub(crate) step: StepShape,
    /// Beside the trainer's state.
    pub(crate) validation: PassShape,
    /// Before and after training, by itself. Absent: nothing is measured.
    pub(crate) measuring: Option<PassShape>,
}

/// Embedding with a model by itself.
#[derive(Debug, Clone)]
pub(crate) struct EmbeddingShape {
    pub(crate) quantization: Option<Quantization>,
    pub(crate) adapter: Option<LoraConfig>,
    pub(crate) pass: PassShape,
    /// As servers do it.
    pub(crate) recorded: bool,
}

/// Device memory that a document's job needs at most: without a tokenizer each text counts with its bytes. Files that
/// the document names are looked for from `folder` on, and what cannot be read counts as the longest that is allowed:
/// the job itself will say what is wrong with it. `on` is the family of the device.
///
/// # Errors
/// A model that is not supported.
pub fn plan_memory(
    document: &Document,
    model: &ModelAtHand,
    folder: &Path,
    on: BackendKind,
) -> Result<Bytes, WorkloadError> {
    let model = planned(model)?;
    let positions = model.config.max_positions();
    let on = PlannedDevice {
        kind: device_kind(on),
        precision: likely_precision(document.model().precision, on),
        binding_limit: None,
    };
    let longest = document.model().max_length.map_or(positions, |length| length as usize);
    let longest = longest.clamp(1, positions);
    let any = PassShape::bound_of_embedding(on.kind, usize::MAX, longest, usize::MAX);
    let (adapter, own) = match &document.workload {
        Workload::Train(train) => {
            let prompt = |name: &Option<String>| {
                name.as_ref().and_then(|name| train.model.prompts.get(name)).map_or(0, String::len)
            };
            let prompts = [prompt(&train.data.anchor_prompt), prompt(&train.data.other_prompt)];
            let bound = ByteBound { longest, prompts };
            return plan_training(train, &model, on, submitted_training(train, folder, bound, on.kind));
        }
        Workload::Evaluate(evaluate) => (&evaluate.adapter, evaluate.quantization),
        Workload::Serve(serve) => (&serve.adapter, serve.quantization),
    };
    let (adapter, quantization) = match adapter {
        None => (None, own),
        Some(reference) => submitted_adapter(reference, folder),
    };
    let recorded = matches!(document.workload, Workload::Serve(_));
    plan_embedding(&model, on, &EmbeddingShape { quantization, adapter, pass: any, recorded })
}

/// Weights that cannot be read are those of the config alone.
fn planned(model: &ModelAtHand) -> Result<PlannedModel, WorkloadError> {
    let weights: Vec<&[u8]> = model.weights.iter().map(|map| &map[..]).collect();
    let files = ModelFiles {
        config_json: &model.config,
        pooling_json: None,
        modules_json: None,
        sentence_bert_json: None,
        weights: &weights,
    };
    let of_files = if weights.is_empty() { None } else { PlannedModel::of_files(&files).ok() };
    Ok(of_files.map_or_else(|| PlannedModel::of_config(&model.config), Ok)?)
}

/// What activations will be kept in, as far as it can be said without the device.
fn likely_precision(asked: ModelPrecision, on: BackendKind) -> Precision {
    match asked {
        ModelPrecision::Bf16 => Precision::Bf16,
        ModelPrecision::Auto if on == BackendKind::Cuda => Precision::Bf16,
        ModelPrecision::F32 | ModelPrecision::Auto => Precision::F32,
    }
}

fn submitted_training(train: &Train, folder: &Path, bound: ByteBound, kind: DeviceKind) -> TrainingShape {
    let rows = |name: &String| {
        let file = RowFile::open(&folder.join(name), name, RowForm::of(&train.loss)).ok()?;
        Some((file.count(), RowLengths::by_bytes(&file, bound).ok()?))
    };
    let step = rows(&train.data.train)
        .and_then(|(count, lengths)| Some(lengths.step(&train.steps, DataOrder::new(&train.steps, count)?)));
    let batch = train.steps.batch_size as usize;
    let pairs = Batch {
        rows: batch,
        texts: 2 * batch,
        longest: bound.longest,
        tokens: (2 * batch).saturating_mul(bound.longest),
    };
    let any = PassShape::bound_of_embedding(kind, usize::MAX, bound.longest, usize::MAX);
    let validation = |name| rows(name).map_or(any, |(_, lengths)| lengths.pairs(WINDOW_ROWS as usize, kind));
    TrainingShape {
        step: step.unwrap_or_else(|| pairs.step(train.steps.token_budget as usize)),
        validation: train.data.validation.as_ref().map_or_else(PassShape::default, validation),
        measuring: (!train.evaluate.is_empty()).then_some(any),
    }
}

fn submitted_adapter(
    reference: &AdapterReference,
    folder: &Path,
) -> (Option<LoraConfig>, Option<Quantization>) {
    let read = || {
        let Source::File { path } = &reference.source else { return None };
        let files = AdapterFiles::read(&folder.join(path)).ok()?;
        let own = files.identity.as_ref().and_then(|identity| identity.base.quantization.as_ref());
        let own = own.filter(|_| reference.base == AdapterBase::Own).map(Recipe::quantization);
        Some((Some(LoraConfig::from_peft(&files.config).ok()?), own))
    };
    let assumed = LoraConfig {
        rank: ASSUMED_RANK,
        alpha: 1.0,
        dropout: 0.0,
        rank_stabilized: false,
        targets: motley_ops::Targets::AllLinear,
    };
    read().unwrap_or((Some(assumed), None))
}

/// Training, and the measuring before and after it, on the quantized and on the full-precision base.
///
/// # Errors
/// Settings that the model cannot take.
pub(crate) fn plan_training(
    train: &Train,
    model: &PlannedModel,
    on: PlannedDevice,
    shape: TrainingShape,
) -> Result<Bytes, WorkloadError> {
    let quantization = quantization(&train.adapter);
    let adapter = lora_config(&train.adapter);
    let request = PlanRequest {
        device: on,
        options: options(quantization, train.model.dropout_from_config),
        adapter: Some(adapter.clone()),
        embedding: shape.validation,
        recorded: false,
        training: Some((shape.step, loss(&train.loss))),
        checkpoint_layers: checkpoint_layers(train, &model.config),
    };
    let mut needed = peak(model, &request)?;
    if let Some(pass) = shape.measuring {
        let adapter = Some(adapter);
        for quantization in [quantization, None] {
            let shape = EmbeddingShape { quantization, adapter: adapter.clone(), pass, recorded: false };
            needed = needed.max(plan_embedding(model, on, &shape)?);
        }
    }
    Ok(needed)
}

/// # Errors
/// An adapter that the model cannot take.
pub(crate) fn plan_embedding(
    model: &PlannedModel,
    on: PlannedDevice,
    shape: &EmbeddingShape,
) -> Result<Bytes, WorkloadError> {
    let request = PlanRequest {
        device: on,
        options: options(shape.quantization, false),
        adapter: shape.adapter.clone(),
        embedding: shape.pass,
        recorded: shape.recorded,
        training: None,
        checkpoint_layers: false,
    };
    peak(model, &request)
}

/// What a job was planned to need.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Planned {
    pub(crate) needed: Bytes,
    /// What helps where that was not enough.
    pub(crate) remedy: &'static str,
}

impl Planned {
    pub(crate) fn training(needed: Bytes) -> Planned {
        Planned { needed, remedy: "take another device, or lower [train] token_budget or batch_size" }
    }

    pub(crate) fn embedding(needed: Bytes) -> Planned {
        Planned {
            needed,
            remedy: "take another device, lower the model's max_length, or take a smaller model",
        }
    }

    /// An error of the middle of a job; with the plan's figure where the device ran out of memory.
    pub(crate) fn explain(self, error: WorkloadError, backend: &dyn Backend) -> WorkloadError {
        let device = match &error {
            WorkloadError::Compute(motley_ops::Error::Backend(Error::OutOfMemory { device, .. }))
            | WorkloadError::Device(Error::OutOfMemory { device, .. }) => device.clone(),
            _ => return error,
        };
        let (planned, held) = (self.needed, Bytes(backend.memory().peak));
        let remedy = self.remedy.to_owned();
        WorkloadError::Exhausted { device, planned, held, remedy, source: Box::new(error) }
    }
}

/// The device that is open, for a plan.
pub(crate) fn planned_on(backend: &dyn Backend) -> PlannedDevice {
    let info = backend.info();
    PlannedDevice { kind: info.kind, precision: info.precision, binding_limit: backend.binding_limit() }
}

fn options(quantization: Option<Quantization>, dropout_from_config: bool) -> LoadOptions {
    LoadOptions {
        quantization: quantization.map(|Quantization::Nf4 { double_quantization }| {
            motley_ops::Quantization { double: double_quantization }
        }),
        // Whether or not modules.json asks for it: the vectors of a pass are small.
        normalize: Some(true),
        dropout: if dropout_from_config { ModelDropout::Config } else { ModelDropout::Off },
    }
}

fn peak(model: &PlannedModel, request: &PlanRequest) -> Result<Bytes, WorkloadError> {
    let report = motley_ops::plan_memory(model, request)?;
    Ok(Bytes(report.peak.next_multiple_of(ROUNDING)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6,
        "num_attention_heads": 12, "intermediate_size": 1536, "vocab_size": 30522,
        "max_position_embeddings": 512}"#;
    const ON: BackendKind = BackendKind::Cpu;
    const TRAIN: &str = r#"version = 1
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
kind = "infonce"
[train]
batch_size = 32
token_budget = 16384
"#;
    const SERVE: &str = "version = 1\nkind = \"serve\"\nname = \"x\"\n[model]\nsource = \"a/b\"\n";

    fn needed(text: &str, folder: &Path) -> u64 {
        plan_memory(&Document::parse(text).unwrap(), &ModelAtHand::of_config(CONFIG), folder, ON).unwrap().0
    }

    #[test]
    fn larger_batches_need_more_and_smaller_budgets_less() {
        let needed = |from: &str, to: &str| needed(&TRAIN.replace(from, to), Path::new("/nowhere"));
        let plain = needed("", "");
        assert!(plain > 100 << 20 && plain < 4 << 30, "{plain}");
        assert!(needed("batch_size = 32", "batch_size = 128") > plain);
        assert!(needed("token_budget = 16384", "token_budget = 1024") < plain);
        assert!(needed("kind = \"qlora\"", "kind = \"lora\"") > plain);
        assert!(needed("max_length = 128", "max_length = 128\ndropout = \"config\"") > plain);
        let measured = "name = \"x\"\n[[evaluate]]\ntask = \"sts\"\ndata = \"test.jsonl\"";
        let small = "token_budget = 512";
        let text = TRAIN.replace("token_budget = 16384", small).replace("batch_size = 32", "batch_size = 2");
        let text = text.replace("max_length = 128", "max_length = 8");
        let with = Document::parse(&text.replace("name = \"x\"", measured)).unwrap();
        let with = plan_memory(&with, &ModelAtHand::of_config(CONFIG), Path::new("/nowhere"), ON).unwrap().0;
        assert!(with > 90 << 20, "measured on the full-precision base: {with}");
    }

    #[test]
    fn the_data_is_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let plan = |row: &str| {
            std::fs::write(folder.path().join("t.jsonl"), format!("{row}\n").repeat(64)).unwrap();
            needed(TRAIN, folder.path())
        };
        let short = plan(r#"{"anchor": "a", "positive": "b"}"#);
        let long = plan(&format!(r#"{{"anchor": "a", "positive": "{}"}}"#, "b".repeat(1000)));
        let negatives = r#"{"anchor": "a", "positive": "b", "negatives": ["c", "d", "e", "f", "g", "h"]}"#;
        assert!(short < plan(negatives) && plan(negatives) < long && long < 2 << 30, "{short} {long}");
    }

    #[test]
    fn a_servers_adapter_counts() {
        let plain = needed(SERVE, Path::new("/nowhere"));
        let with = format!("{SERVE}[adapter]\nsource = \"job:7\"\n");
        assert!(needed(&with, Path::new("/nowhere")) > plain);
        let quantized = SERVE.replace("\"a/b\"\n", "\"a/b\"\nquantization = \"nf4\"\n");
        assert!(needed(&quantized, Path::new("/nowhere")) < plain);
    }

    #[test]
    fn weights_at_hand_are_planned_as_the_device_keeps_them() {
        use safetensors::{Dtype, tensor::TensorView};
        let config = r#"{"model_type": "bert", "hidden_size": 512, "num_hidden_layers": 1,
            "num_attention_heads": 8, "intermediate_size": 2048, "vocab_size": 10, "max_position_embeddings": 8}"#;
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
        write("config.json", config.as_bytes());
        let document = SERVE.replace("a/b", "file:.");
        let document = Document::parse(&document).unwrap();
        let needed = |on: BackendKind| {
            let settings = crate::models::ModelSettings::from_environment(folder.path().join("cache"));
            let request = crate::models::ModelRequest::from(document.model());
            let model = crate::models::model_at_hand(&request, &settings, folder.path()).unwrap();
            (model.weights.len(), plan_memory(&document, &model, folder.path(), on).unwrap().0)
        };
        let before = [BackendKind::Wgpu, BackendKind::Cpu].map(needed);
        let module = |name: &str, shape: [usize; 2]| (format!("encoder.layer.0.{name}.weight"), shape);
        let mut tensors = ["self.query", "self.key", "self.value", "output.dense"]
            .map(|name| module(&format!("attention.{name}"), [512, 512]))
            .to_vec();
        tensors.push(module("intermediate.dense", [2048, 512]));
        tensors.push(module("output.dense", [512, 2048]));
        tensors.push(("embeddings.word_embeddings.weight".to_owned(), [10, 512]));
        let zeros = vec![0; 2 * 2048 * 512];
        let views = tensors.iter().map(|(name, shape)| {
            let bytes = &zeros[..2 * shape[0] * shape[1]];
            (name.as_str(), TensorView::new(Dtype::F16, shape.to_vec(), bytes).unwrap())
        });
        write("model.safetensors", &safetensors::serialize(views, None).unwrap());
        let after = [BackendKind::Wgpu, BackendKind::Cpu].map(needed);
        assert_eq!((before[0].0, after[0].0), (0, 1));
        // 3·2²⁰ values of two bytes less.
        assert_eq!(after[0].1 + (6 << 20), before[0].1, "{before:?} {after:?}");
        assert_eq!(after[1].1, before[1].1);
        write("model.safetensors", b"no weights");
        assert_eq!(needed(BackendKind::Wgpu), (1, before[0].1), "what cannot be read counts as f32");
    }
}
