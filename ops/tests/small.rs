//! A small seeded encoder against a plain f64 forward pass, and what must not change its bits.

// Helpers of tests fail by panicking too.
#![allow(clippy::unwrap_used)]

mod support;

use motley_backends::faults::{Fault, Faulty};
use motley_backends::{DeviceRequest, open};
use motley_ops::{Encoder, Error, LoadOptions, ModelConfig, Quantization, TokenizedText};
use safetensors::Dtype;
use serde_json::json;
use support::decoder::small_decoder;
use support::plain::{Plain, PlainAdapter};
use support::small::{HIDDEN, Setup, SmallModel, texts, trainer};
use support::{device, is_elsewhere};

/// Ten times what two layers of f32 come to here; values are of size 1.
const TOLERANCE: f64 = 1e-5;

fn largest_difference(got: &[f32], wanted: &[f64]) -> f64 {
    assert_eq!(got.len(), wanted.len());
    got.iter().zip(wanted).map(|(got, wanted)| (f64::from(*got) - wanted).abs()).fold(0.0, f64::max)
}

#[test]
fn every_position_rule_pooling_and_stored_dtype_gives_the_values_of_plain_loops() {
    for model_type in ["bert", "xlm-roberta"] {
        for pooling in ["mean", "cls"] {
            for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
                let mut model = SmallModel::new(model_type, pooling, dtype);
                model.normalize = pooling == "mean";
                let texts = texts(12, model.config().token_types, 7);
                let got = model.load(2).embed(&texts).unwrap();
                let wanted = Plain::new(&model).embed(&texts);
                let worst = largest_difference(&got, &wanted);
                eprintln!("{model_type} {pooling} {dtype:?}: {worst:e}");
                assert!(worst <= TOLERANCE, "{model_type} {pooling} {dtype:?}: {worst:e}");
            }
        }
    }
}

#[test]
fn another_position_rule_and_another_pooling_are_seen() {
    let (bert, cls) =
        (SmallModel::new("bert", "mean", Dtype::F32), SmallModel::new("bert", "cls", Dtype::F32));
    let mut shifted = SmallModel::new("bert", "mean", Dtype::F32);
    let table = shifted.tensors.get_mut("embeddings.position_embeddings.weight").unwrap();
    table.1.rotate_left(2 * HIDDEN);
    let texts = texts(12, 2, 7);
    let got = bert.load(1).embed(&texts).unwrap();
    for other in [shifted, cls] {
        assert!(largest_difference(&got, &Plain::new(&other).embed(&texts)) > 100.0 * TOLERANCE);
    }
}

#[test]
fn with_an_adapter_a_text_has_the_same_bits_alone_in_any_batch_and_on_any_number_of_threads() {
    let model = SmallModel::new("bert", "mean", Dtype::F32);
    let setup = Setup::default();
    let trainer = trainer(&model, &setup);
    let texts = texts(40, 2, 8);
    let all = trainer.encoder().embed(&texts).unwrap();
    let mut plain = Plain::new(&model);
    let without = largest_difference(&all, &plain.embed(&texts));
    plain.adapter = Some(PlainAdapter::of(&setup.lora, &trainer.state().unwrap()));
    let with = largest_difference(&all, &plain.embed(&texts));
    assert!(with <= TOLERANCE && without > 1000.0 * TOLERANCE, "{with:e} {without:e}");
    for (index, text) in texts.iter().enumerate() {
        let alone = trainer.encoder().embed(std::slice::from_ref(text)).unwrap();
        assert!(alone == all[index * HIDDEN..][..HIDDEN], "text {index}");
    }
    let mut reversed = texts.clone();
    reversed.reverse();
    let mut single = model.load(1);
    let weights = trainer.adapter().to_peft_safetensors().unwrap();
    single.attach(motley_ops::Adapter::from_tensors(&single, &setup.lora, &weights).unwrap());
    let backwards = single.embed(&reversed).unwrap();
    let turned: Vec<f32> = backwards.chunks(HIDDEN).rev().flatten().copied().collect();
    assert!(turned == all, "reversed order on one thread differs");
}

#[test]
fn weights_that_are_not_finite_are_refused_by_nf4_and_seen_in_vectors() {
    let name = "encoder.layer.1.attention.self.key.weight";
    let mut model = SmallModel::new("bert", "mean", Dtype::F32);
    model.tensors.get_mut(name).unwrap().1[3 * HIDDEN + 5] = f32::NAN;
    let quantization = Some(Quantization { double: true });
    let options = LoadOptions { quantization, ..LoadOptions::default() };
    let refused = model.try_load(1, options).err().unwrap();
    assert!(matches!(&refused, Error::NonFiniteWeight { name: found, place: [3, 5], .. } if found == name));
    assert!(refused.to_string().contains("\nhint: "), "{refused}");
    let texts = texts(3, 2, 9);
    assert!(matches!(model.load(1).embed(&texts), Err(Error::NonFiniteEmbedding { index: 0 })));
    // One word alone: the text that says it is named.
    let mut model = SmallModel::new("bert", "mean", Dtype::F32);
    let word = texts[2].ids[0] as usize;
    assert!(texts[..2].iter().all(|text| !text.ids.contains(&texts[2].ids[0])));
    let table = model.tensors.get_mut("embeddings.word_embeddings.weight").unwrap();
    table.1[word * HIDDEN] = f32::INFINITY;
    let encoder = model.load(1);
    assert!(matches!(encoder.embed(&texts), Err(Error::NonFiniteEmbedding { index: 2 })));
    assert!(encoder.embed(&texts[..2]).is_ok());
}

#[test]
fn a_device_that_binds_little_gets_the_table_of_words_in_pieces_and_passes_that_fit() {
    let decoder = small_decoder("qwen3", json!({}), Dtype::F32);
    for model in [SmallModel::new("bert", "mean", Dtype::F32), decoder] {
        let types = model.config().token_types.max(1);
        let texts = texts(12, types, 7);
        let wanted = model.load(1).embed(&texts).unwrap();
        // 32 of 50 words, and ten tokens of the widest activations.
        let small = Faulty::new(device(1), "small", Fault::SmallBindings { bytes: 4096 });
        let mut encoder = model.load_on(small, LoadOptions::default()).unwrap();
        let got = encoder.embed(&texts).unwrap();
        let wanted: Vec<f64> = wanted.into_iter().map(f64::from).collect();
        let worst = largest_difference(&got, &wanted);
        assert!(worst <= if is_elsewhere() { TOLERANCE } else { 0.0 }, "{worst:e}");
        encoder.set_pass_tokens(1000);
        let refused = encoder.embed(&texts).unwrap_err();
        assert!(refused.to_string().contains("binds") && refused.to_string().contains("4096"), "{refused}");
    }
}

#[test]
fn a_table_of_words_beyond_what_the_device_binds_gives_the_vectors_of_the_processor() {
    let device = device(1);
    let Some(limit) = device.binding_limit().filter(|limit| *limit <= 1 << 28) else {
        return support::say_skipped("the device binds tables of any size that a test would make");
    };
    let (hidden, words) = (1024, limit as usize / 4096 + 100);
    let config = json!({"model_type": "bert", "hidden_size": hidden, "num_hidden_layers": 1,
        "num_attention_heads": 16, "intermediate_size": 64, "vocab_size": words, "max_position_embeddings": 16});
    let config = ModelConfig::parse(&config.to_string()).unwrap();
    let cpu = open(&DeviceRequest { backend: "cpu".to_owned(), ..DeviceRequest::default() }).unwrap();
    let ids = [0, 1, words / 2, words - 101, words - 100, words - 99, words - 2, words - 1];
    let text = TokenizedText { ids: ids.map(|id| id as u32).to_vec(), type_ids: vec![] };
    let [got, wanted] = [device, cpu].map(|device| {
        let encoder = Encoder::random(device, &config, &LoadOptions::default(), 1).unwrap();
        encoder.embed(std::slice::from_ref(&text)).unwrap()
    });
    let wanted: Vec<f64> = wanted.into_iter().map(f64::from).collect();
    let worst = largest_difference(&got, &wanted);
    assert!(worst <= TOLERANCE, "{worst:e}");
}
