//! The encoder against values of another implementation, and its promise of equal bits.

mod support;

use motley_ops::{LoadOptions, Quantization, TokenizedText};
use serde_json::Value;
use support::{Model, json_lines, shared};

/// Ten times the noise between float32 implementations is 3e-6; the aim is given as 1e-5.
const TOLERANCE: f32 = 1e-5;

fn reference() -> Option<(Model, Vec<TokenizedText>, Vec<f32>)> {
    let (model, path) = (Model::find()?, shared("reference/minilm_embeddings.jsonl")?);
    let (mut texts, mut wanted) = (Vec::new(), Vec::new());
    for row in json_lines(&path) {
        let numbers = |key: &str| row[key].as_array().unwrap().clone();
        let ids = numbers("token_ids").iter().map(|id| Value::as_u64(id).unwrap() as u32).collect();
        texts.push(TokenizedText { ids, type_ids: Vec::new() });
        wanted.extend(numbers("embedding").iter().map(|value| value.as_f64().unwrap() as f32));
    }
    Some((model, texts, wanted))
}

#[test]
fn embeddings_are_those_of_sentence_transformers() {
    let Some((model, texts, wanted)) = reference() else { return };
    let encoder = model.load(2, &LoadOptions::default());
    let got = encoder.embed(&texts).unwrap();
    assert_eq!(got.len(), wanted.len());
    let worst = got.iter().zip(&wanted).map(|(got, wanted)| (got - wanted).abs()).fold(0.0, f32::max);
    eprintln!("largest difference of {} values: {worst:e}", got.len());
    assert!(worst <= TOLERANCE, "{worst:e}");
}

#[test]
fn wrong_epsilon_and_wrong_activation_are_seen() {
    let Some((model, texts, wanted)) = reference() else { return };
    let tanh = model.config.replace("\"hidden_act\": \"gelu\"", "\"hidden_act\": \"gelu_new\"");
    let epsilon = model.config.replace("\"layer_norm_eps\": 1e-12", "\"layer_norm_eps\": 1e-5");
    for config in [tanh, epsilon] {
        assert_ne!(config, model.config);
        let got = model.load_as(&config, 2, &LoadOptions::default()).embed(&texts).unwrap();
        let worst = got.iter().zip(&wanted).map(|(got, wanted)| (got - wanted).abs()).fold(0.0, f32::max);
        assert!(worst > TOLERANCE, "{worst:e} would pass");
    }
}

#[test]
fn a_text_has_the_same_bits_alone_in_any_batch_and_on_any_number_of_threads() {
    let Some((model, texts, _)) = reference() else { return };
    for quantization in [None, Some(Quantization { double: true })] {
        let options = LoadOptions { quantization, ..LoadOptions::default() };
        let encoder = model.load(2, &options);
        let all = encoder.embed(&texts).unwrap();
        let single = model.load(1, &options);
        for (index, text) in texts.iter().enumerate().step_by(5) {
            let alone = encoder.embed(std::slice::from_ref(text)).unwrap();
            assert_eq!(alone, all[index * 384..][..384], "text {index}");
        }
        let mut reversed = texts.clone();
        reversed.reverse();
        let backwards = single.embed(&reversed).unwrap();
        let turned: Vec<f32> = backwards.chunks(384).rev().flatten().copied().collect();
        assert!(turned == all, "reversed order on one thread differs");
    }
}
