//! A small encoder with seeded weights, stored in any of the dtypes; and trainers on it.
//!
//! Every weight is a whole number of at most seven bits times a power of two: f32, f16 and bf16 hold it exactly, so
//! one f64 computation is the reference for all three.

use std::collections::BTreeMap;
use std::sync::Arc;

use motley_backends::Backend;
use motley_ops::{
    Adapter, Encoder, LoadOptions, LoraConfig, LossConfig, ModelConfig, ModelDropout, ModelFiles,
    OptimizerConfig, Quantization, Schedule, ScheduleKind, Targets, TokenizedText, TrainRow, Trainer,
    TrainerConfig,
};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::device;

pub const HIDDEN: usize = 32;
const VOCABULARY: usize = 50;

/// Name, shape, values.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

pub struct SmallModel {
    pub config: Value,
    /// A mode of 1_Pooling/config.json: `mean`, `cls`.
    pub pooling: &'static str,
    pub normalize: bool,
    pub dropout: ModelDropout,
    pub tensors: Tensors,
    pub dtype: Dtype,
}

/// Whole numbers from −63 to 63 from a linear congruential generator (Knuth's constants).
pub struct Seeded(u64);

impl Seeded {
    pub fn new(seed: u64) -> Self {
        Seeded(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, most: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as u32 % most
    }

    pub fn values(&mut self, count: usize, unit: f32) -> Vec<f32> {
        (0..count).map(|_| (self.below(127) as f32 - 63.0) * unit).collect()
    }
}

impl SmallModel {
    /// `model_type` is `bert` or `xlm-roberta`.
    pub fn new(model_type: &str, pooling: &'static str, dtype: Dtype) -> Self {
        let roberta = model_type != "bert";
        let config = json!({
            "model_type": model_type, "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 2 * HIDDEN, "vocab_size": VOCABULARY, "max_position_embeddings": 24,
            "type_vocab_size": if roberta { 1 } else { 2 }, "pad_token_id": u32::from(roberta),
            "layer_norm_eps": 1e-5, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2,
        });
        let tensors = tensors(&ModelConfig::parse(&config.to_string()).unwrap());
        SmallModel { config, pooling, normalize: false, dropout: ModelDropout::Off, tensors, dtype }
    }

    pub fn config(&self) -> ModelConfig {
        ModelConfig::parse(&self.config.to_string()).unwrap()
    }

    pub fn load(&self, threads: usize) -> Encoder {
        self.try_load(threads, LoadOptions::default()).unwrap()
    }

    pub fn try_load(&self, threads: usize, options: LoadOptions) -> motley_ops::Result<Encoder> {
        self.load_on(device(threads), options)
    }

    pub fn load_on(&self, device: Arc<dyn Backend>, options: LoadOptions) -> motley_ops::Result<Encoder> {
        let pooling = json!({ "word_embedding_dimension": HIDDEN, "pooling_mode": self.pooling });
        let files = ModelFiles {
            config_json: &self.config.to_string(),
            pooling_json: Some(&pooling.to_string()),
            modules_json: None,
            sentence_bert_json: None,
            weights: &[&self.weight_file()],
        };
        let options = LoadOptions { normalize: Some(self.normalize), dropout: self.dropout, ..options };
        Encoder::load(device, &files, &options)
    }

    fn weight_file(&self) -> Vec<u8> {
        let bytes = |values: &[f32]| -> Vec<u8> {
            match self.dtype {
                Dtype::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
                Dtype::BF16 => {
                    values.iter().flat_map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes()).collect()
                }
                _ => values.iter().flat_map(|value| half(*value).to_le_bytes()).collect(),
            }
        };
        let stored: Vec<_> =
            self.tensors.iter().map(|(name, (shape, values))| (name, shape, bytes(values))).collect();
        let views = stored
            .iter()
            .map(|(name, shape, bytes)| (name, TensorView::new(self.dtype, shape.to_vec(), bytes).unwrap()));
        safetensors::serialize(views, None).unwrap()
    }
}

/// Bits of a value that binary16 holds exactly: 0, or of an exponent of at least −14.
fn half(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    if value == 0.0 { sign } else { sign | ((bits >> 13 & 0x3_ffff) - (112 << 10)) as u16 }
}

fn tensors(config: &ModelConfig) -> Tensors {
    let mut seeded = Seeded::new(1);
    let mut tensors = Tensors::new();
    let mut put = |name: String, shape: Vec<usize>, unit: f32, centre: f32| {
        let values = seeded.values(shape.iter().product(), unit);
        tensors.insert(name, (shape, values.iter().map(|value| value + centre).collect()));
    };
    let tables =
        [("word", config.vocabulary), ("position", config.position_rows), ("token_type", config.token_types)];
    for (name, rows) in tables {
        put(format!("embeddings.{name}_embeddings.weight"), vec![rows, HIDDEN], 1.0 / 64.0, 0.0);
    }
    let mut norms = vec!["embeddings".to_owned()];
    for layer in 0..config.layers {
        norms.push(format!("encoder.layer.{layer}.attention.output"));
        norms.push(format!("encoder.layer.{layer}.output"));
        for role in config.roles() {
            let [inputs, outputs] = role.widths(config);
            let path = config.module_path(layer, *role);
            put(format!("{path}.weight"), vec![outputs, inputs], 1.0 / 256.0, 0.0);
            put(format!("{path}.bias"), vec![outputs], 1.0 / 256.0, 0.0);
        }
    }
    for norm in norms {
        // 1 ± 0.5 in steps of 1/128: seven bits behind the leading one.
        put(format!("{norm}.LayerNorm.weight"), vec![HIDDEN], 1.0 / 128.0, 1.0);
        put(format!("{norm}.LayerNorm.bias"), vec![HIDDEN], 1.0 / 256.0, 0.0);
    }
    tensors
}

/// Texts of 1 to 9 tokens; with segments of two types where the model has them.
pub fn texts(count: usize, types: usize, seed: u64) -> Vec<TokenizedText> {
    let mut seeded = Seeded::new(seed);
    let mut text = |index: usize| {
        let length = 1 + (index * 5) % 9;
        let ids = (0..length).map(|_| seeded.below(VOCABULARY as u32)).collect();
        let type_ids = (0..length).map(|place| u32::from(types > 1 && place > length / 2)).collect();
        TokenizedText { ids, type_ids }
    };
    (0..count).map(&mut text).collect()
}

/// Rows of `texts_of(row)` texts each.
pub fn rows(count: usize, texts_of: impl Fn(usize) -> usize, seed: u64) -> Vec<TrainRow> {
    let mut all = texts((0..count).map(&texts_of).sum(), 2, seed).into_iter();
    let row = |row| TrainRow {
        sample: 10 + row as u32,
        texts: all.by_ref().take(texts_of(row)).collect(),
        label: Some((row * 7 % 5) as f32 / 5.0),
    };
    (0..count).map(row).collect()
}

/// A trainer's settings, with defaults that suit a check of gradients.
#[derive(Clone)]
pub struct Setup {
    pub lora: LoraConfig,
    pub loss: LossConfig,
    pub token_budget: usize,
    pub checkpoint_layers: bool,
    pub quantization: Option<Quantization>,
}

impl Default for Setup {
    fn default() -> Self {
        let lora = LoraConfig {
            rank: 4,
            alpha: 8.0,
            dropout: 0.0,
            rank_stabilized: false,
            targets: Targets::AllLinear,
        };
        let loss = LossConfig::Cosent { scale: 4.0 };
        Setup { lora, loss, token_budget: 10_000, checkpoint_layers: false, quantization: None }
    }
}

pub const SEED: u64 = 0x1_0000_0007;

/// A trainer at step 0 whose factors are all other than 0.
pub fn trainer(model: &SmallModel, setup: &Setup) -> Trainer {
    trainer_on(device(2), model, setup)
}

pub fn trainer_on(device: Arc<dyn Backend>, model: &SmallModel, setup: &Setup) -> Trainer {
    let options = LoadOptions { quantization: setup.quantization, ..LoadOptions::default() };
    let encoder = model.load_on(device, options).unwrap();
    let adapter = Adapter::new(&encoder, &setup.lora, 5).unwrap();
    let config = TrainerConfig {
        loss: setup.loss,
        optimizer: OptimizerConfig { learning_rate: 1e-3, ..OptimizerConfig::default() },
        schedule: Schedule { kind: ScheduleKind::Constant, warmup_steps: 0 },
        total_steps: 10,
        max_gradient_norm: Some(1.0),
        seed: SEED,
        token_budget_per_chunk: setup.token_budget,
        checkpoint_layers: setup.checkpoint_layers,
    };
    let mut trainer = Trainer::new(encoder, adapter, config).unwrap();
    let mut state = trainer.state().unwrap();
    let mut seeded = Seeded::new(6);
    for (name, tensor) in &mut state.tensors {
        if name.starts_with("parameter.") && name.ends_with("lora_B_transposed") {
            tensor.values = seeded.values(tensor.values.len(), 1.0 / 512.0);
        }
    }
    trainer.restore(&state).unwrap();
    trainer
}
