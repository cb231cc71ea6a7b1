//! A small decoder through a whole job: sharded bf16 weights, byte-level tokens, QLoRA with layers run again, the
//! adapter and the merged folder.

use motley_ops::ModelConfig;
use motley_scheduler_core::document::model::AdapterBase;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

use super::exporting::{embed_with, largest_difference, model_as_trained};
use super::*;
use crate::text::decoder_tests::byte_level_file;
use crate::workload::{ExportOptions, export_merged};

const DOCUMENT: &str = r#"version = 1
kind = "train"
name = "little"
[model]
source = "file:model"
max_length = 32
[adapter]
kind = "qlora"
rank = 4
dropout = 0.1
[data]
train = "train.jsonl"
[loss]
kind = "cosent"
[optimizer]
learning_rate = 2e-2
[train]
epochs = 3
batch_size = 4
"#;

/// A Qwen3 of two layers in two shards, with what a sentence-transformers folder has beside the weights.
fn write_model(folder: &Path) {
    let config = json!({
        "model_type": "qwen3", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 48, "vocab_size": 264,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "dtype": "bfloat16",
    });
    let write = |name: &str, value: &Value| std::fs::write(folder.join(name), value.to_string()).unwrap();
    write("config.json", &config);
    std::fs::write(folder.join("tokenizer.json"), byte_level_file()).unwrap();
    std::fs::create_dir(folder.join("1_Pooling")).unwrap();
    write("1_Pooling/config.json", &json!({"pooling_mode_lasttoken": true, "word_embedding_dimension": 32}));
    let module = |path: &str, kind: &str| json!({"path": path, "type": format!("sentence_transformers.models.{kind}")});
    write(
        "modules.json",
        &json!([
            module("", "Transformer"),
            module("1_Pooling", "Pooling"),
            module("2_Normalize", "Normalize")
        ]),
    );
    let config = ModelConfig::parse(&config.to_string()).unwrap();
    let mut shards =
        [vec![("embed_tokens.weight".to_owned(), vec![264, 32])], vec![("norm.weight".to_owned(), vec![32])]];
    for (layer, shard) in shards.iter_mut().enumerate() {
        let norms = ["input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"];
        for (norm, width) in norms.into_iter().zip([32, 32, 16, 16]) {
            shard.push((format!("layers.{layer}.{norm}.weight"), vec![width]));
        }
        for role in config.roles() {
            let [inputs, outputs] = role.widths(&config);
            shard.push((format!("{}.weight", config.module_path(layer, *role)), vec![outputs, inputs]));
        }
    }
    let mut map = serde_json::Map::new();
    let mut state = 1u32;
    for (number, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-00002.safetensors", number + 1);
        map.extend(shard.iter().map(|(tensor, _)| (tensor.clone(), json!(name))));
        let mut bytes = |shape: &[usize]| -> Vec<u8> {
            let value = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let random = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
                let value = if shape.len() == 1 { 1.0 } else { 0.3 * random };
                ((value.to_bits() >> 16) as u16).to_le_bytes()
            };
            std::iter::repeat_with(value).take(shape.iter().product()).flatten().collect()
        };
        let stored: Vec<_> = shard.iter().map(|(name, shape)| (name, shape, bytes(shape))).collect();
        let views = stored
            .iter()
            .map(|(name, shape, bytes)| (name, TensorView::new(Dtype::BF16, shape.to_vec(), bytes).unwrap()));
        std::fs::write(folder.join(name), safetensors::serialize(views, None).unwrap()).unwrap();
    }
    write("model.safetensors.index.json", &json!({"metadata": {}, "weight_map": map}));
}

fn rows() -> String {
    let row = |i: usize| {
        let other = if i.is_multiple_of(2) { "ab ba" } else { "1 + 1" };
        json!({"sentence1": format!("ab ab {i}"), "sentence2": format!("{other} {i}"), "score": (i % 2) as f64})
    };
    (0..12).map(|i| format!("{}\n", row(i))).collect()
}

#[test]
fn a_decoder_is_trained_exported_and_merged_like_any_model() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    let attempt = Attempt::new(DOCUMENT, &[("model.source", folder.path())]);
    let place = attempt.root.path().join("input/data.train");
    std::fs::create_dir_all(&place).unwrap();
    std::fs::write(place.join("train.jsonl"), rows()).unwrap();
    attempt.run().unwrap();

    let adapter = attempt.output("adapter");
    let config: Value = serde_json::from_slice(&attempt.read("adapter/adapter_config.json")).unwrap();
    let targets = config["target_modules"].as_array().unwrap();
    assert_eq!(targets.len(), 7, "{config:#}");
    assert!(targets.contains(&json!("self_attn.q_proj")) && targets.contains(&json!("mlp.gate_proj")));

    let texts = tempfile::Builder::new().suffix(".txt").tempfile().unwrap();
    std::fs::write(texts.path(), "ab ab 3\n\nGenève, 央行\n1 + 1 ab\n").unwrap();
    let own = embed_with(model_as_trained(folder.path()), Some((&adapter, AdapterBase::Own)), texts.path())
        .unwrap();
    let output = attempt.root.path().join("merged");
    let options = ExportOptions {
        model: model_as_trained(folder.path()),
        settings: ModelSettings::from_environment(attempt.root.path().join("cache")),
        adapter: Some((adapter, AdapterBase::Own)),
        output: output.clone(),
        threads: Some(2),
    };
    export_merged(&options, &mut |_| {}).unwrap();
    let merged = embed_with(model_as_trained(&output), None, texts.path()).unwrap();
    let difference = largest_difference(&own, &merged);
    assert!(difference <= 1e-5, "{difference}");
    let base = embed_with(model_as_trained(folder.path()), None, texts.path()).unwrap();
    assert!(largest_difference(&base, &merged) > 1e-3, "training changed nothing");
}
