//! Training against runs of another implementation (PyTorch, PEFT, bitsandbytes): every loss, every gradient norm and
//! the way every tensor went; and planted mistakes that must fall outside of the same tolerances.

// Helpers of tests fail by panicking too.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::PathBuf;

use motley_ops::{
    Adapter, LoadOptions, LoraConfig, LossConfig, OptimizerConfig, Quantization, Schedule, ScheduleKind,
    Targets, TrainRow, Trainer, TrainerConfig,
};
use safetensors::SafeTensors;
use serde_json::Value;
use support::{Model, is_elsewhere, json_lines, shared, tokenize};

/// A recorded run with everything to follow it.
struct Run {
    model: Model,
    record: Value,
    rows: Vec<TrainRow>,
    initial: Vec<u8>,
    last: Vec<u8>,
}

/// Tolerances of the reference, ten times the noise between correct implementations.
struct Tolerance {
    loss_relative: f64,
    norm_relative: f64,
    cosine: f64,
}

/// What was planted.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mistake {
    None,
    NoWeightDecay,
    LargeAdamEpsilon,
    LargeNormEpsilon,
    TanhGelu,
}

impl Run {
    fn find(name: &str) -> Option<Run> {
        let model = Model::find()?;
        let file = |suffix: &str| shared(&format!("reference/{name}{suffix}"));
        let record: Value = serde_json::from_str(&std::fs::read_to_string(file(".json")?).unwrap()).unwrap();
        let read = |path: PathBuf| std::fs::read(path).unwrap();
        let initial = read(file("_adapter_initial.safetensors")?);
        let last = read(file("_adapter_final.safetensors")?);
        let tokenizer = model.tokenizer();
        let only_positives = record["loss"] == "infonce";
        let score = |row: &Value| row["score"].as_f64().unwrap();
        let mut rows = Vec::new();
        for row in json_lines(&shared("data/stsb/en/train.jsonl")?) {
            if only_positives && score(&row) < 4.0 {
                continue;
            }
            let text = |key: &str| tokenize(&tokenizer, row[key].as_str().unwrap());
            let texts = vec![text("sentence1"), text("sentence2")];
            rows.push(TrainRow { sample: rows.len() as u32, texts, label: Some((score(&row) / 5.0) as f32) });
            if rows.len() == record["steps"].as_array().unwrap().len() * 32 {
                break;
            }
        }
        Some(Run { model, record, rows, initial, last })
    }

    fn number(&self, key: &str) -> f64 {
        self.record[key].as_f64().unwrap()
    }

    fn tolerance(&self) -> Tolerance {
        if self.record["quantization"].is_null() {
            Tolerance { loss_relative: 5e-6, norm_relative: 5e-5, cosine: 0.9999 }
        } else {
            Tolerance { loss_relative: 5e-5, norm_relative: 2e-4, cosine: 0.9999 }
        }
    }

    fn trainer(&self, mistake: Mistake) -> Trainer {
        let config = match mistake {
            Mistake::LargeNormEpsilon => self.model.config.replace("1e-12", "1e-5"),
            Mistake::TanhGelu => self.model.config.replace("\"gelu\"", "\"gelu_new\""),
            _ => self.model.config.clone(),
        };
        let quantization = (!self.record["quantization"].is_null()).then_some(Quantization { double: true });
        let encoder = self.model.load_as(&config, 2, &LoadOptions { quantization, ..LoadOptions::default() });
        let lora = LoraConfig {
            rank: self.number("rank") as usize,
            alpha: self.number("alpha") as f32,
            dropout: 0.0,
            rank_stabilized: false,
            targets: Targets::AllLinear,
        };
        let adapter = Adapter::from_tensors(&encoder, &lora, &self.initial).unwrap();
        let loss = match self.record["loss"].as_str().unwrap() {
            "cosent" => LossConfig::Cosent { scale: 20.0 },
            "cosine_similarity" => LossConfig::CosineSimilarity,
            _ => LossConfig::Infonce {
                temperature: 0.05,
                symmetric: false,
                in_batch_negatives: true,
                false_negative_margin: None,
                mask_duplicates: false,
            },
        };
        let is = |other| mistake == other;
        let config = TrainerConfig {
            loss,
            optimizer: OptimizerConfig {
                learning_rate: self.number("learning_rate"),
                epsilon: if is(Mistake::LargeAdamEpsilon) { 1e-6 } else { self.number("eps") },
                weight_decay: if is(Mistake::NoWeightDecay) { 0.0 } else { self.number("weight_decay") },
                ..OptimizerConfig::default()
            },
            schedule: Schedule { kind: ScheduleKind::Constant, warmup_steps: 0 },
            total_steps: 20,
            max_gradient_norm: Some(self.number("max_grad_norm")),
            seed: 42,
            token_budget_per_chunk: 16384,
            checkpoint_layers: false,
        };
        Trainer::new(encoder, adapter, config).unwrap()
    }

    /// Follows the run and says how often it was left, and by how many tolerances at most: of losses, gradient
    /// norms and tensors.
    fn follow(&self, mistake: Mistake) -> Excess {
        let tolerance = self.tolerance();
        let mut trainer = self.trainer(mistake);
        let mut excess = Excess::default();
        let steps = if is_elsewhere() { 1 } else { usize::MAX };
        let recorded = self.record["steps"].as_array().unwrap();
        for (step, rows) in recorded.iter().zip(self.rows.chunks(32)).take(steps) {
            let (loss, norm) = (step["loss"].as_f64().unwrap(), step["grad_norm"].as_f64().unwrap());
            let report = trainer.step(rows).unwrap();
            let allowed = 1e-6 + tolerance.loss_relative * loss;
            excess.loss = excess.loss.max((report.loss - loss).abs() / allowed);
            excess.norm =
                excess.norm.max((report.gradient_norm - norm).abs() / (tolerance.norm_relative * norm));
        }
        // Where tensors went is recorded for the whole run alone.
        if !is_elsewhere() {
            let got = trainer.adapter().to_peft_safetensors().unwrap();
            excess.tensor = (1.0 - self.smallest_cosine(&got)) / (1.0 - tolerance.cosine);
        }
        eprintln!("{} {mistake:?}: in tolerances, {excess:?}", self.record["loss"]);
        excess
    }

    /// Of (final − initial) of each tensor, ours against theirs.
    fn smallest_cosine(&self, got: &[u8]) -> f64 {
        let files = [got, &self.initial, &self.last].map(|bytes| SafeTensors::deserialize(bytes).unwrap());
        let mut smallest = 1.0f64;
        for name in files[1].names() {
            let [ours, start, theirs] = [0, 1, 2].map(|file: usize| {
                let view = files[file].tensor(name).unwrap();
                let values = view.data().chunks_exact(4);
                values.map(|four| f64::from(f32::from_le_bytes(four.try_into().unwrap()))).collect::<Vec<_>>()
            });
            let moved = |end: &[f64]| end.iter().zip(&start).map(|(a, b)| a - b).collect::<Vec<_>>();
            let (a, b) = (moved(&ours), moved(&theirs));
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            smallest = smallest.min(dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt());
        }
        smallest
    }
}

/// Largest deviations in units of what is allowed.
#[derive(Debug, Default)]
struct Excess {
    loss: f64,
    norm: f64,
    tensor: f64,
}

impl Excess {
    fn is_within(&self) -> bool {
        self.loss <= 1.0 && self.norm <= 1.0 && self.tensor <= 1.0
    }
}

fn check(name: &str) {
    let Some(run) = Run::find(name) else { return };
    assert_eq!(run.rows.len(), 640);
    let excess = run.follow(Mistake::None);
    assert!(excess.is_within(), "{name}: {excess:?}");
}

#[test]
fn cosent_with_lora_follows_pytorch() {
    check("cosent_lora");
}

#[test]
fn cosent_with_qlora_follows_pytorch() {
    check("cosent_qlora");
}

#[test]
fn infonce_with_lora_follows_pytorch() {
    check("infonce_lora");
}

#[test]
fn infonce_with_qlora_follows_pytorch() {
    check("infonce_qlora");
}

#[test]
fn cosine_similarity_with_lora_follows_pytorch() {
    check("cosine_similarity_lora");
}

#[test]
fn planted_mistakes_leave_the_tolerances() {
    let Some(run) = Run::find("cosent_lora") else { return };
    let mistakes =
        [Mistake::NoWeightDecay, Mistake::LargeAdamEpsilon, Mistake::LargeNormEpsilon, Mistake::TanhGelu];
    for mistake in mistakes {
        let excess = run.follow(mistake);
        assert!(!excess.is_within(), "{mistake:?} passes: {excess:?}");
    }
}
