//! The encoder against values of another implementation, and its promise of equal bits.

// Helpers of tests fail by panicking too.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use motley_backends::Precision;
use motley_kernels::nf4;
use motley_ops::{Adapter, LoadOptions, LoraConfig, Quantization, Targets, TokenizedText};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use support::{Model, emulated, is_elsewhere, json_lines, shared};

/// Ten times the noise between float32 implementations is 3e-6; the aim is given as 1e-5.
const TOLERANCE: f32 = 1e-5;

fn reference() -> Option<(Model, Vec<TokenizedText>, Vec<f32>)> {
    let (model, path) = (Model::find()?, shared("reference/minilm_embeddings.jsonl")?);
    let (mut texts, mut wanted) = (Vec::new(), Vec::new());
    for row in json_lines(&path) {
        let numbers = |key: &str| row[key].as_array().unwrap().clone();
        let ids: Vec<_> = numbers("token_ids").iter().map(|id| Value::as_u64(id).unwrap() as u32).collect();
        if is_elsewhere() && ids.len() > 64 {
            continue;
        }
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

/// As far as the reference goes on a device that is a processor: texts of up to 64 tokens.
#[test]
fn embeddings_in_bf16_point_where_those_of_sentence_transformers_do() {
    let Some((model, texts, wanted)) = reference() else { return };
    let Some(device) = emulated(Precision::Bf16) else { return };
    let width = 384;
    let pairs = texts.iter().zip(wanted.chunks_exact(width)).filter(|(text, _)| text.ids.len() <= 64);
    let (texts, wanted): (Vec<TokenizedText>, Vec<&[f32]>) =
        pairs.map(|(text, wanted)| (text.clone(), wanted)).unzip();
    let got = model.load_on(device, &model.config, &LoadOptions::default()).embed(&texts).unwrap();
    let cosine = |(a, b): (&[f32], &&[f32])| a.iter().zip(*b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    let least = got.chunks_exact(width).zip(&wanted).map(cosine).fold(1.0, f64::min);
    eprintln!("least cosine of {} texts: {least}", texts.len());
    assert!(!texts.is_empty() && least >= 0.9995, "{least}");
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

/// The model's weight file with the linear layers of `replaced` in place of its own.
fn weight_file(model: &Model, replaced: &[(String, [usize; 2], Vec<f32>)]) -> Vec<u8> {
    let file = SafeTensors::deserialize(&model.weights).unwrap();
    let mut tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = file
        .iter()
        .map(|(name, view)| (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
        .collect();
    for (name, shape, values) in replaced {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let before = tensors.insert(name.clone(), (Dtype::F32, shape.to_vec(), bytes));
        assert!(before.is_some(), "{name} is no tensor of the model");
    }
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

#[test]
fn a_quantized_base_computes_what_its_dequantized_weights_compute() {
    let Some((model, texts, _)) = reference() else { return };
    for double in [false, true] {
        let options = LoadOptions { quantization: Some(Quantization { double }), ..LoadOptions::default() };
        let mut quantized = model.load(2, &options);
        let lora = LoraConfig {
            rank: 1,
            alpha: 1.0,
            dropout: 0.0,
            rank_stabilized: false,
            targets: Targets::AllLinear,
        };
        let wanted = quantized.embed(&texts).unwrap();
        quantized.attach(Adapter::new(&quantized, &lora, 1).unwrap());
        let weights: Vec<_> = quantized.merged_weights().unwrap().map(Result::unwrap).collect();
        let original = SafeTensors::deserialize(&model.weights).unwrap();
        for (name, _, values) in &weights {
            let bytes = original.tensor(name).unwrap();
            let bytes = bytes.data().chunks_exact(4);
            let source: Vec<f32> = bytes.map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect();
            let (codes, absmax) = nf4::quantize(&source);
            let absmax = if double { nf4::DoubleQuantized::new(&absmax).absmax() } else { absmax };
            assert!(*values == nf4::dequantize(&codes, &absmax, source.len()), "{name}");
        }
        let mut plain = model.clone();
        plain.weights = weight_file(&model, &weights);
        let got = plain.load(2, &LoadOptions::default()).embed(&texts).unwrap();
        let worst = got.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        eprintln!("double {double}: {worst:e}");
        assert!(worst < 1e-6, "double {double}: {worst:e}");
    }
}
