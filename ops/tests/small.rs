//! A small seeded encoder against a plain f64 forward pass, and what must not change its bits.

// Helpers of tests fail by panicking too.
#![allow(clippy::unwrap_used)]

mod support;

use motley_ops::{Error, LoadOptions, Quantization};
use safetensors::Dtype;
use support::plain::{Plain, PlainAdapter};
use support::small::{HIDDEN, Setup, SmallModel, texts, trainer};

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
