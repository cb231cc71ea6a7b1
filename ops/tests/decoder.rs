//! Small decoders against plain f64 loops: vectors, gradients of adapters on plain and on quantized bases, and the
//! ways of computing a step that must come to the same.

// Helpers of tests fail by panicking too.
#![allow(clippy::unwrap_used)]

mod support;

use motley_ops::{
    Adapter, Encoder, Error, LoadOptions, LoraConfig, LossValue, ModelConfig, ModelDropout, Quantization,
    Targets, TokenizedText, TrainRow, Trainer,
};
use safetensors::Dtype;
use serde_json::{Value, json};
use support::decoder::{PlainDecoder, small_decoder};
use support::plain::PlainAdapter;
use support::small::{HIDDEN, Seeded, Setup, SmallModel, rows, texts, trainer};
use support::{device, difference};

/// Ten times what two layers of f32 come to here; values are of size 1.
const TOLERANCE: f64 = 1e-5;

/// Of the largest gradient: ten times what the rounding of forward and backward in f32 comes to here.
const GRADIENT_TOLERANCE: f64 = 5e-6;

/// Factors are looked at in steps of this many elements, a prime.
const EVERY: usize = 37;

/// Every family and every variant that is computed.
fn variants() -> Vec<(&'static str, Value)> {
    vec![
        ("qwen3", json!({})),
        ("qwen3", json!({"attention_bias": true, "is_causal": false})),
        ("qwen2", json!({})),
        ("mistral", json!({"num_key_value_heads": 6})),
        ("llama", json!({"attention_bias": true, "num_key_value_heads": 1})),
        ("llama", json!({"use_bidirectional_attention": true, "rope_theta": 10000.0})),
    ]
}

fn largest_difference(got: &[f32], wanted: &[f64]) -> f64 {
    assert_eq!(got.len(), wanted.len());
    got.iter().zip(wanted).map(|(got, wanted)| (f64::from(*got) - wanted).abs()).fold(0.0, f64::max)
}

fn some_texts() -> Vec<TokenizedText> {
    texts(12, 1, 7)
}

fn some_rows() -> Vec<TrainRow> {
    let mut rows = rows(4, |row| 2 + row % 2, 4);
    rows.iter_mut().flat_map(|row| &mut row.texts).for_each(|text| text.type_ids.clear());
    rows
}

fn double() -> Option<Quantization> {
    Some(Quantization { double: true })
}

#[test]
fn every_family_gives_the_values_of_plain_loops() {
    for (model_type, more) in variants() {
        for (dtype, pooling) in [(Dtype::F32, "lasttoken"), (Dtype::BF16, "mean")] {
            let mut model = small_decoder(model_type, more.clone(), dtype);
            (model.pooling, model.normalize) = (pooling, pooling == "mean");
            let got = model.load(2).embed(&some_texts()).unwrap();
            let worst = largest_difference(&got, &PlainDecoder::new(&model).embed(&some_texts()));
            eprintln!("{model_type} {more} {pooling}: {worst:e}");
            assert!(worst <= TOLERANCE, "{model_type} {more} {pooling}: {worst:e}");
        }
    }
}

#[test]
fn another_mask_base_epsilon_and_missing_norms_of_heads_are_seen() {
    let model = small_decoder("qwen3", json!({}), Dtype::F32);
    let got = model.load(1).embed(&some_texts()).unwrap();
    for other in [json!({"is_causal": false}), json!({"rope_theta": 110.0}), json!({"rms_norm_eps": 1e-4})] {
        let model = small_decoder("qwen3", other.clone(), Dtype::F32);
        let worst = largest_difference(&got, &PlainDecoder::new(&model).embed(&some_texts()));
        assert!(worst > 10.0 * TOLERANCE, "{other}: {worst:e} would pass");
    }
    let mut plain = small_decoder("qwen3", json!({}), Dtype::F32);
    plain.config["model_type"] = json!("mistral");
    let worst = largest_difference(&got, &PlainDecoder::new(&plain).embed(&some_texts()));
    assert!(worst > 10.0 * TOLERANCE, "{worst:e} would pass");
}

#[test]
fn a_quantized_base_gives_the_values_of_its_dequantized_weights() {
    let model = small_decoder("qwen3", json!({}), Dtype::F32);
    let options = LoadOptions { quantization: double(), ..LoadOptions::default() };
    let got = model.try_load(2, options).unwrap().embed(&some_texts()).unwrap();
    let quantized = largest_difference(&got, &PlainDecoder::new(&model).quantized().embed(&some_texts()));
    let plain = largest_difference(&got, &PlainDecoder::new(&model).embed(&some_texts()));
    assert!(quantized <= TOLERANCE && plain > 100.0 * TOLERANCE, "{quantized:e} {plain:e}");
}

/// Name, first element and length of every factor in the flat gradient.
fn layout(lora: &LoraConfig, config: &ModelConfig) -> Vec<(String, usize, usize)> {
    let (mut places, mut next) = (Vec::new(), 0);
    for (layer, role) in lora.resolve(config).unwrap() {
        let [inputs, outputs] = role.widths(config);
        for (name, width) in [("lora_A", inputs), ("lora_B_transposed", outputs)] {
            places.push((format!("{}.{name}", config.module_path(layer, role)), next, lora.rank * width));
            next += (lora.rank * width).next_multiple_of(64);
        }
    }
    places
}

/// Gradient of Σ upstream·vectors after these rows, and the vectors.
fn gradient(trainer: &mut Trainer, rows: &[TrainRow], keep_tape: bool) -> (Vec<f32>, Vec<f32>) {
    let embedded = trainer.embed(rows, keep_tape).unwrap();
    let vectors = embedded.embeddings.clone();
    let gradient = upstream(vectors.len());
    trainer.backward(embedded, &LossValue { loss: 0.0, gradient, rows: rows.len() }, 0).unwrap();
    (trainer.gradients().unwrap(), vectors)
}

fn upstream(count: usize) -> Vec<f32> {
    Seeded::new(9).values(count, 1.0 / 64.0)
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let some = ["q_proj", "v_proj", "up_proj"].map(str::to_owned);
    let some = LoraConfig { targets: Targets::Names(some.to_vec()), ..Setup::default().lora };
    let quantized = Setup { quantization: double(), checkpoint_layers: true, ..Setup::default() };
    let mut cases: Vec<_> =
        variants().into_iter().map(|(model_type, more)| (model_type, more, Setup::default())).collect();
    cases.push(("qwen3", json!({}), quantized.clone()));
    cases.push(("mistral", json!({}), Setup { lora: some, ..quantized }));
    let rows = some_rows();
    let texts: Vec<TokenizedText> = rows.iter().flat_map(|row| row.texts.clone()).collect();
    for (model_type, more, setup) in cases {
        let model = SmallModel { normalize: true, ..small_decoder(model_type, more.clone(), Dtype::F32) };
        let mut trainer = trainer(&model, &setup);
        let plain = PlainDecoder::new(&model);
        let mut plain = if setup.quantization.is_some() { plain.quantized() } else { plain };
        plain.adapter = Some(PlainAdapter::of(&setup.lora, &trainer.state().unwrap()));
        let (gradient, vectors) = gradient(&mut trainer, &rows, true);
        assert!(largest_difference(&vectors, &plain.embed(&texts)) <= TOLERANCE);
        let upstream = upstream(vectors.len());
        let largest = gradient.iter().fold(0.0f32, |a, b| a.max(b.abs()));
        let mut worst = 0.0f64;
        for (name, start, length) in layout(&setup.lora, &model.config()) {
            let part = &gradient[start..start + length];
            assert!(part.iter().any(|value| value.abs() > 1e-4 * largest), "{name} has no gradient");
            for element in (start % EVERY..length).step_by(EVERY) {
                let along = |delta: f64| {
                    plain.adapter.as_mut().unwrap().factors.get_mut(&name).unwrap()[element] += delta;
                    let vectors = plain.embed(&texts);
                    plain.adapter.as_mut().unwrap().factors.get_mut(&name).unwrap()[element] -= delta;
                    vectors.iter().zip(&upstream).map(|(x, u)| x * f64::from(*u)).sum()
                };
                worst = worst.max((f64::from(part[element]) - difference(along, 1e-4)).abs());
            }
        }
        let error = worst / f64::from(largest);
        eprintln!("{model_type} {more} quantized {}: {error:e}", setup.quantization.is_some());
        assert!(error <= GRADIENT_TOLERANCE, "{model_type} {more}: {error:e}");
    }
}

#[test]
fn layers_and_chunks_run_again_leave_the_same_bits_with_dropout() {
    let mut model = small_decoder("qwen3", json!({}), Dtype::F32);
    model.dropout = ModelDropout::Config;
    let dropping = || {
        let lora = LoraConfig { dropout: 0.3, ..Setup::default().lora };
        Setup { lora, quantization: double(), ..Setup::default() }
    };
    let rows = some_rows();
    let of = |setup: &Setup, keep_tape| gradient(&mut trainer(&model, setup), &rows, keep_tape);
    let plain = of(&dropping(), true);
    assert!(of(&Setup { checkpoint_layers: true, ..dropping() }, true) == plain);
    let chunked = Setup { token_budget: 12, checkpoint_layers: true, ..dropping() };
    assert!(of(&chunked, false).1 == plain.1 && of(&chunked, false) == of(&chunked, true));
    let without = Setup { lora: Setup::default().lora, ..dropping() };
    assert!(of(&without, true).1 != plain.1, "nothing was dropped");
}

#[test]
fn a_text_has_the_same_bits_alone_in_any_batch_and_on_any_number_of_threads() {
    let model = small_decoder("qwen3", json!({}), Dtype::F32);
    let trainer = trainer(&model, &Setup { quantization: double(), ..Setup::default() });
    let texts = texts(40, 1, 8);
    let all = trainer.encoder().embed(&texts).unwrap();
    for (index, text) in texts.iter().enumerate() {
        let alone = trainer.encoder().embed(std::slice::from_ref(text)).unwrap();
        assert!(alone == all[index * HIDDEN..][..HIDDEN], "text {index}");
    }
    let options = LoadOptions { quantization: double(), ..LoadOptions::default() };
    let mut single = model.try_load(1, options).unwrap();
    let weights = trainer.adapter().to_peft_safetensors().unwrap();
    single.attach(Adapter::from_tensors(&single, &Setup::default().lora, &weights).unwrap());
    let mut reversed = texts.clone();
    reversed.reverse();
    let backwards = single.embed(&reversed).unwrap();
    let turned: Vec<f32> = backwards.chunks(HIDDEN).rev().flatten().copied().collect();
    assert!(turned == all, "reversed order on one thread differs");
}

#[test]
fn adapters_and_merged_weights_bear_the_names_of_peft_and_of_the_weight_file() {
    let model = small_decoder("qwen2", json!({}), Dtype::F32);
    let trainer = trainer(&model, &Setup::default());
    let file = trainer.adapter().to_peft_safetensors().unwrap();
    let file = safetensors::SafeTensors::deserialize(&file).unwrap();
    assert_eq!(file.names().len(), 2 * 7 * 2);
    for (name, shape) in [
        ("layers.1.self_attn.k_proj.lora_B", [20, 4]),
        ("layers.0.self_attn.o_proj.lora_A", [4, 60]),
        ("layers.1.mlp.gate_proj.lora_B", [44, 4]),
        ("layers.0.mlp.down_proj.lora_A", [4, 44]),
    ] {
        let tensor = file.tensor(&format!("base_model.model.{name}.weight")).unwrap();
        assert_eq!(tensor.shape(), shape, "{name}");
    }
    let wanted = trainer.encoder().embed(&some_texts()).unwrap();
    let mut merged = small_decoder("qwen2", json!({}), Dtype::F32);
    for weight in trainer.encoder().merged_weights().unwrap() {
        let (name, shape, values) = weight.unwrap();
        let before = merged.tensors.insert(format!("model.{name}"), (shape.to_vec(), values)).unwrap();
        assert_eq!(before.0, shape, "{name}");
    }
    let got = merged.load(2).embed(&some_texts()).unwrap();
    let wanted: Vec<f64> = wanted.iter().map(|value| f64::from(*value)).collect();
    assert!(largest_difference(&got, &wanted) <= TOLERANCE);
}

#[test]
fn what_a_decoder_cannot_take_is_refused() {
    let model = small_decoder("mistral", json!({"sliding_window": 8}), Dtype::F32);
    let text = TokenizedText { ids: vec![1; 9], type_ids: Vec::new() };
    let error = model.load(1).embed(&[text]).unwrap_err();
    assert!(matches!(error, Error::TextLength { tokens: 9, most: 8, .. }), "{error}");
    let mut model = small_decoder("qwen3", json!({}), Dtype::F32);
    model.tensors.remove("model.layers.1.self_attn.k_norm.weight");
    let error = model.try_load(1, LoadOptions::default()).err().unwrap().to_string();
    assert!(error.contains("model.layers.1.self_attn.k_norm.weight"), "{error}");
}

#[test]
fn random_weights_depend_on_the_seed_alone() {
    let config = small_decoder("qwen3", json!({}), Dtype::F32).config();
    let embed = |seed, quantization| {
        let options = LoadOptions { quantization, normalize: Some(true), ..LoadOptions::default() };
        Encoder::random(device(2), &config, &options, seed).unwrap().embed(&some_texts()).unwrap()
    };
    let vectors = embed(3, None);
    assert!(vectors.chunks(HIDDEN).all(|x| (x.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-5));
    assert!(embed(3, None) == vectors && embed(4, None) != vectors && embed(3, double()) != vectors);
}
