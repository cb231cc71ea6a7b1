//! Small passes that a device remembers: the same vectors as passes of single launches, and the memory that is planned.
//! On CUDA emulated on the processor, or with `MOTLEY_TEST_BACKEND=cuda` on a card.

// Helpers of tests fail by panicking too.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use motley_backends::{Backend, DeviceKind, DeviceRequest, Precision, open};
use motley_ops::{
    Adapter, Encoder, LoadOptions, LoraConfig, ModelConfig, PassShape, PlanRequest, PlannedDevice,
    PlannedModel, Quantization, Targets, TokenizedText, plan_memory,
};

const BERT: &str = r#"{"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "vocab_size": 50, "max_position_embeddings": 40}"#;
const DECODER: &str = r#"{"model_type": "qwen3", "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64, "vocab_size": 50,
    "max_position_embeddings": 40}"#;
/// Sizes of up to 40 tokens.
const SIZES: usize = 2;

fn device() -> Option<Arc<dyn Backend>> {
    match std::env::var("MOTLEY_TEST_BACKEND").as_deref() {
        Ok("cuda") => Some(support::device(1)),
        _ => support::emulated(Precision::F32),
    }
}

fn text(length: usize) -> TokenizedText {
    TokenizedText { ids: (0..length as u32).map(|token| (token * 7 + 3) % 50).collect(), type_ids: vec![] }
}

fn options(quantization: Option<Quantization>) -> LoadOptions {
    LoadOptions { quantization, normalize: Some(true), ..LoadOptions::default() }
}

fn lora() -> LoraConfig {
    LoraConfig { rank: 2, alpha: 4.0, dropout: 0.0, rank_stabilized: false, targets: Targets::AllLinear }
}

#[test]
fn recorded_passes_give_the_same_vectors_and_hold_what_was_planned() {
    let Some(backend) = device() else { return };
    let batches: [&[usize]; 7] = [&[5], &[16], &[1, 2], &[3, 20], &[32], &[40], &[9, 9, 9, 9]];
    for config in [BERT, DECODER] {
        for quantization in [None, Some(Quantization { double: true })] {
            let parsed = ModelConfig::parse(config).unwrap();
            let before = backend.memory().live;
            let mut encoder = Encoder::random(backend.clone(), &parsed, &options(quantization), 1).unwrap();
            encoder.attach(Adapter::new(&encoder, &lora(), 1).unwrap());
            let texts: Vec<Vec<TokenizedText>> =
                batches.iter().map(|lengths| lengths.iter().map(|length| text(*length)).collect()).collect();
            let wanted: Vec<Vec<f32>> = texts.iter().map(|texts| encoder.embed(texts).unwrap()).collect();
            let unrecorded = backend.memory().live;
            assert_eq!(encoder.record_passes().unwrap(), SIZES);
            let held = backend.memory().live - unrecorded;
            for _ in 0..2 {
                for (texts, wanted) in texts.iter().zip(&wanted) {
                    let got = encoder.embed(texts).unwrap();
                    let worst = got.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    // Other sizes may be multiplied in another order.
                    assert!(got.len() == wanted.len() && worst < 1e-5, "{config}: {worst}");
                }
            }
            let planned = |recorded| {
                let request = PlanRequest {
                    device: PlannedDevice {
                        kind: DeviceKind::Cuda,
                        precision: Precision::F32,
                        binding_limit: None,
                    },
                    options: options(quantization),
                    adapter: Some(lora()),
                    recorded,
                    embedding: PassShape { texts: 4, tokens: 40 },
                    training: None,
                    checkpoint_layers: false,
                };
                plan_memory(&PlannedModel::of_config(config).unwrap(), &request).unwrap()
            };
            let (with, without) = (planned(true), planned(false));
            assert_eq!((with.live - without.live, with.peak - without.peak), (held, held), "{config}");
            assert_eq!(backend.memory().live - unrecorded, held);
            drop(encoder);
            assert_eq!(backend.memory().live, before);
        }
    }
}

#[test]
fn a_device_that_gains_nothing_records_nothing() {
    let backend = open(&DeviceRequest { backend: "cpu".into(), ..DeviceRequest::default() }).unwrap();
    let config = ModelConfig::parse(BERT).unwrap();
    let mut encoder = Encoder::random(backend, &config, &options(None), 1).unwrap();
    assert_eq!(encoder.record_passes().unwrap(), 0);
}
