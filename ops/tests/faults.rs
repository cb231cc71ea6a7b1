//! Devices that fail in the middle of a step: a typed error, no panic, and no memory left behind.

// Helpers of tests fail by panicking too.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use motley_backends::faults::{Fault, Faulty};
use motley_backends::{Backend, DeviceRequest, open};
use motley_ops::{
    Adapter, Encoder, Error, LoadOptions, LoraConfig, LossConfig, ModelConfig, OptimizerConfig, Quantization,
    Schedule, ScheduleKind, Targets, TokenizedText, TrainRow, Trainer, TrainerConfig,
};

const BERT: &str = r#"{"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "vocab_size": 50, "max_position_embeddings": 16}"#;
const DECODER: &str = r#"{"model_type": "qwen3", "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64, "vocab_size": 50,
    "max_position_embeddings": 16}"#;

fn cpu() -> Arc<dyn Backend> {
    let request = DeviceRequest { backend: "cpu".into(), threads: Some(1), ..DeviceRequest::default() };
    open(&request).unwrap()
}

fn trainer(backend: Arc<dyn Backend>, config: &str, checkpoint_layers: bool) -> Result<Trainer, Error> {
    let config = ModelConfig::parse(config).unwrap();
    let options = LoadOptions { quantization: Some(Quantization { double: true }), ..LoadOptions::default() };
    let encoder = Encoder::random(backend, &config, &options, 1)?;
    let lora =
        LoraConfig { rank: 2, alpha: 4.0, dropout: 0.1, rank_stabilized: false, targets: Targets::AllLinear };
    let adapter = Adapter::new(&encoder, &lora, 1)?;
    let config = TrainerConfig {
        loss: LossConfig::Cosent { scale: 20.0 },
        optimizer: OptimizerConfig::default(),
        schedule: Schedule { kind: ScheduleKind::Constant, warmup_steps: 0 },
        total_steps: 10,
        max_gradient_norm: Some(1.0),
        seed: 1,
        // Two chunks a step: forward without a tape, then again with one.
        token_budget_per_chunk: 12,
        checkpoint_layers,
    };
    Trainer::new(encoder, adapter, config)
}

fn rows() -> Vec<TrainRow> {
    let text = |seed: u32| TokenizedText {
        ids: (0..5).map(|token| (seed * 7 + token * 3) % 50).collect(),
        ..Default::default()
    };
    let row = |sample: u32| TrainRow {
        sample,
        texts: vec![text(2 * sample), text(2 * sample + 1)],
        label: Some(sample as f32 / 3.0),
    };
    (0..2).map(row).collect()
}

/// How many buffers and launches loading and two steps take.
fn counts(config: &str, checkpoint_layers: bool) -> [(u64, u64); 2] {
    let device = Faulty::new(cpu(), "cpu:0", Fault::OutOfMemory { allocation: u64::MAX });
    let mut trainer = trainer(device.clone(), config, checkpoint_layers).unwrap();
    let loaded = (device.allocations(), device.launches());
    trainer.step(&rows()).unwrap();
    trainer.step(&rows()).unwrap();
    [loaded, (device.allocations(), device.launches())]
}

#[test]
fn wherever_memory_ends_the_step_fails_and_gives_back_what_it_took() {
    for (config, checkpoint_layers) in [(BERT, false), (BERT, true), (DECODER, true)] {
        let [(loaded, _), (all, _)] = counts(config, checkpoint_layers);
        assert!(all > loaded + 50, "a step allocates: {loaded} to {all}");
        for allocation in loaded..all {
            let device = Faulty::new(cpu(), "cuda:0", Fault::OutOfMemory { allocation });
            let mut trainer = trainer(device.clone(), config, checkpoint_layers).unwrap();
            let before = device.memory().live;
            let rows = rows();
            let error = trainer.step(&rows).and_then(|_| trainer.step(&rows)).unwrap_err();
            assert!(
                matches!(&error, Error::Backend(motley_backends::Error::OutOfMemory { device, .. })
                    if device == "cuda:0"),
                "{allocation}: {error}"
            );
            assert_eq!(device.memory().live, before, "{allocation} of {loaded}..{all}");
            drop(trainer);
            assert_eq!(device.memory().live, 0, "{allocation} of {loaded}..{all}");
        }
    }
}

#[test]
fn wherever_a_device_is_lost_the_step_fails_and_its_memory_is_given_back() {
    for (config, checkpoint_layers) in [(BERT, false), (DECODER, true)] {
        let [(_, loaded), (_, all)] = counts(config, checkpoint_layers);
        for launch in loaded..all {
            let device = Faulty::new(cpu(), "cuda:0", Fault::Lost { launch });
            let mut trainer = trainer(device.clone(), config, checkpoint_layers).unwrap();
            let before = device.memory().live;
            let rows = rows();
            let error = trainer.step(&rows).and_then(|_| trainer.step(&rows)).unwrap_err();
            assert!(
                matches!(error, Error::Backend(motley_backends::Error::DeviceFailed { .. })),
                "{launch}: {error}"
            );
            // It stays lost: nothing hangs, nothing panics.
            assert!(trainer.step(&rows).is_err() && trainer.state().is_err());
            assert_eq!(device.memory().live, before, "{launch} of {loaded}..{all}");
            drop(trainer);
            assert_eq!(device.memory().live, 0, "{launch} of {loaded}..{all}");
        }
    }
}

#[test]
fn a_load_that_runs_out_of_memory_leaves_nothing() {
    let [(loaded, _), _] = counts(BERT, false);
    for allocation in 0..loaded {
        let device = Faulty::new(cpu(), "cuda:0", Fault::OutOfMemory { allocation });
        let error = trainer(device.clone(), BERT, false).err().unwrap();
        assert!(matches!(error, Error::Backend(motley_backends::Error::OutOfMemory { .. })), "{error}");
        assert_eq!(device.memory().live, 0, "{allocation} of {loaded}");
    }
}
