//! The trainer on a small seeded encoder: its gradient against finite differences of a plain f64 forward pass, and
//! the ways of computing a step that must come to the same.

// Helpers of tests fail by panicking too.
#![allow(clippy::unwrap_used)]

mod support;

use motley_backends::faults::{Fault, Faulty};
use motley_kernels::{cosent, cosine_pairs, squared_error};
use motley_ops::{
    Embedded, LoraConfig, LossConfig, ModelConfig, ModelDropout, Targets, TextFact, TrainRow, Trainer,
};
use safetensors::Dtype;
use support::infonce::{self, Rows, Settings};
use support::plain::{Plain, PlainAdapter};
use support::small::{HIDDEN, Setup, SmallModel, rows, trainer, trainer_on};
use support::{device, difference};

/// Of the largest gradient: ten times what the rounding of forward and backward in f32 comes to here.
const TOLERANCE: f64 = 5e-6;

/// Of the largest gradient, between two orders of the same additions.
const ORDER: f32 = 2e-6;

/// Factors are looked at in steps of this many elements, a prime.
const EVERY: usize = 37;

const INFONCE: LossConfig = LossConfig::Infonce {
    temperature: 0.2,
    symmetric: true,
    in_batch_negatives: true,
    false_negative_margin: None,
    mask_duplicates: true,
};

fn loss(config: &LossConfig, x: &[f64], rows: &[TrainRow], facts: &[TextFact]) -> f64 {
    if let LossConfig::Infonce { temperature, symmetric, in_batch_negatives, mask_duplicates, .. } = *config {
        let counts: Vec<usize> = rows.iter().map(|row| row.texts.len()).collect();
        let hashes: Vec<u64> = facts.iter().map(|fact| fact.hash).collect();
        let settings = Settings {
            temperature: f64::from(temperature),
            symmetric,
            in_batch: in_batch_negatives,
            margin: None,
            duplicates: mask_duplicates,
        };
        return infonce::evaluate(x, HIDDEN, &Rows { counts: &counts, hashes: &hashes }, &settings).0;
    }
    let side = |side: usize| x.chunks(HIDDEN).skip(side).step_by(2).flatten().copied().collect::<Vec<_>>();
    let cosines = cosine_pairs::reference::forward(&side(0), &side(1), HIDDEN);
    let labels: Vec<f64> = rows.iter().map(|row| f64::from(row.label.unwrap())).collect();
    match config {
        LossConfig::Cosent { scale } => {
            cosent::reference::forward_backward(&cosines, &labels, f64::from(*scale)).0
        }
        _ => squared_error::reference::forward_backward(&cosines, &labels).0,
    }
}

/// Name, first element and length of every factor in the flat gradient.
fn layout(lora: &LoraConfig, config: &ModelConfig) -> Vec<(String, usize, usize)> {
    let (mut places, mut next) = (Vec::new(), 0);
    for (layer, role) in lora.resolve(config).unwrap() {
        let [inputs, outputs] = role.widths(config);
        for (name, width) in [("lora_A", inputs), ("lora_B_transposed", outputs)] {
            places.push((format!("{}.{name}", config.module_path(layer, role)), next, lora.rank * width));
            next += (lora.rank * width).next_multiple_of(16);
        }
    }
    places
}

/// The worst error of the trainer's gradient, as a share of the largest gradient. `believed` is the adapter that the
/// plain pass computes.
fn gradient_error(model: &SmallModel, setup: &Setup, rows: &[TrainRow], believed: &LoraConfig) -> f64 {
    let mut trainer = trainer(model, setup);
    let mut plain = Plain::new(model);
    plain.adapter = Some(PlainAdapter::of(believed, &trainer.state().unwrap()));
    let facts = trainer.embed(rows, false).unwrap().facts;
    trainer.accumulate(rows).unwrap();
    let gradient = trainer.gradients().unwrap();
    let largest = gradient.iter().fold(0.0f32, |a, b| a.max(b.abs()));
    let mut worst = 0.0f64;
    for (name, start, length) in layout(&setup.lora, &model.config()) {
        for element in (start % EVERY..length).step_by(EVERY) {
            let along = |delta: f64| {
                let factors = &mut plain.adapter.as_mut().unwrap().factors;
                factors.get_mut(&name).unwrap()[element] += delta;
                let value = loss(&setup.loss, &plain.embed_rows(rows), rows, &facts);
                plain.adapter.as_mut().unwrap().factors.get_mut(&name).unwrap()[element] -= delta;
                value
            };
            let wanted = difference(along, 1e-4);
            worst = worst.max((f64::from(gradient[start + element]) - wanted).abs());
        }
    }
    worst / f64::from(largest)
}

fn pairs() -> Vec<TrainRow> {
    rows(5, |_| 2, 4)
}

fn ragged() -> Vec<TrainRow> {
    rows(4, |row| 2 + row % 3, 4)
}

fn bert() -> SmallModel {
    SmallModel { normalize: true, ..SmallModel::new("bert", "mean", Dtype::F32) }
}

fn with_dropout() -> SmallModel {
    SmallModel { dropout: ModelDropout::Config, ..bert() }
}

fn lora() -> LoraConfig {
    Setup::default().lora
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let some = Targets::Names(vec!["query".to_owned(), "intermediate.dense".to_owned()]);
    let dropping = LoraConfig { dropout: 0.3, ..lora() };
    let cases = [
        ("cosent", bert(), Setup::default(), pairs()),
        ("adapter dropout", bert(), Setup { lora: dropping.clone(), ..Setup::default() }, pairs()),
        (
            "dropout everywhere, rsLoRA",
            with_dropout(),
            Setup { lora: LoraConfig { rank_stabilized: true, ..dropping }, ..Setup::default() },
            pairs(),
        ),
        (
            "infonce, some targets, cls",
            SmallModel::new("bert", "cls", Dtype::F32),
            Setup { lora: LoraConfig { targets: some, ..lora() }, loss: INFONCE, ..Setup::default() },
            ragged(),
        ),
        (
            "cosine similarity, layers run again",
            bert(),
            Setup { loss: LossConfig::CosineSimilarity, checkpoint_layers: true, ..Setup::default() },
            pairs(),
        ),
    ];
    for (name, model, setup, rows) in cases {
        let error = gradient_error(&model, &setup, &rows, &setup.lora);
        eprintln!("{name}: {error:e}");
        assert!(error <= TOLERANCE, "{name}: {error:e}");
    }
}

#[test]
fn another_scale_and_another_dropout_fall_outside_of_the_tolerance() {
    let setup = Setup { lora: LoraConfig { dropout: 0.3, ..lora() }, ..Setup::default() };
    for believed in [
        LoraConfig { rank_stabilized: true, ..setup.lora.clone() },
        LoraConfig { dropout: 0.31, ..setup.lora.clone() },
    ] {
        let error = gradient_error(&bert(), &setup, &pairs(), &believed);
        assert!(error > 100.0 * TOLERANCE, "{believed:?}: {error:e}");
    }
}

/// The gradient after these rows, and the vectors of the step.
fn gradient(model: &SmallModel, setup: &Setup, rows: &[TrainRow], keep_tape: bool) -> (Vec<f32>, Vec<f32>) {
    let mut trainer = trainer(model, setup);
    let embedded = trainer.embed(rows, keep_tape).unwrap();
    let vectors = embedded.embeddings.clone();
    let value = trainer.loss(&vectors, &embedded.facts).unwrap();
    trainer.backward(embedded, &value, 0).unwrap();
    (trainer.gradients().unwrap(), vectors)
}

#[track_caller]
fn assert_close(got: &[f32], wanted: &[f32]) {
    assert_eq!(got.len(), wanted.len());
    let largest = wanted.iter().fold(0.0f32, |a, b| a.max(b.abs()));
    assert!(largest > 0.0);
    let worst = got.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= ORDER * largest, "{worst:e} of {largest:e}");
}

fn dropping() -> Setup {
    Setup { lora: LoraConfig { dropout: 0.3, ..lora() }, loss: INFONCE, ..Setup::default() }
}

#[test]
fn a_step_in_chunks_run_twice_is_the_step_with_the_tape_kept() {
    let model = with_dropout();
    let chunked = Setup { token_budget: 12, ..dropping() };
    let (whole, vectors) = gradient(&model, &dropping(), &ragged(), true);
    let (kept, in_chunks) = gradient(&model, &chunked, &ragged(), true);
    let (again, _) = gradient(&model, &chunked, &ragged(), false);
    assert!(in_chunks == vectors, "chunks change a text's bits");
    assert!(again == kept, "running a chunk again draws or computes otherwise");
    assert_close(&again, &whole);
    let mut trainer = trainer(&model, &chunked);
    trainer.accumulate(&ragged()).unwrap();
    assert!(trainer.gradients().unwrap() == again, "beyond the budget a step is run in chunks");
}

#[test]
fn on_a_device_that_binds_little_a_step_is_cut_into_chunks_that_fit() {
    let lora = LoraConfig { rank: 16, ..Setup::default().lora };
    let (model, setup) = (bert(), Setup { lora, ..Setup::default() });
    // Some tokens of the widest activations, where the batch has more, and less than the adapter.
    let bytes = 16 << 10;
    let small = Faulty::new(device(2), "small", Fault::SmallBindings { bytes });
    let mut trainers = [trainer(&model, &setup), trainer_on(small, &model, &setup)];
    assert!(trainers[0].gradients().unwrap().len() as u64 * 4 > bytes);
    let [(whole, report), (chunked, same)] = trainers.each_mut().map(|trainer| {
        trainer.accumulate(&pairs()).unwrap();
        let gradients = trainer.gradients().unwrap();
        let report = trainer.apply().unwrap();
        // Nothing is left of the gradients anywhere.
        assert!(trainer.gradients().unwrap().iter().all(|value| *value == 0.0));
        (gradients, report)
    });
    assert_close(&chunked, &whole);
    assert!((report.gradient_norm - same.gradient_norm).abs() <= 1e-5 * report.gradient_norm);
    let [whole, chunked] = trainers.each_ref().map(|trainer| trainer.adapter().parameters().unwrap());
    assert_close(&chunked, &whole);
}

#[test]
fn layers_run_again_leave_the_same_bits() {
    for model in [bert(), with_dropout()] {
        let again = Setup { checkpoint_layers: true, ..dropping() };
        let (plain, vectors) = gradient(&model, &dropping(), &ragged(), true);
        let (got, same) = gradient(&model, &again, &ragged(), true);
        assert!(got == plain && same == vectors);
    }
}

#[test]
fn accumulated_micro_batches_average_over_all_their_rows() {
    let setup = Setup { loss: LossConfig::CosineSimilarity, ..Setup::default() };
    let rows = pairs();
    let (mut parts, mut whole) = (trainer(&bert(), &setup), trainer(&bert(), &setup));
    let losses = [parts.accumulate(&rows[..4]).unwrap(), parts.accumulate(&rows[4..]).unwrap()];
    // Weighted relative to the first micro-batch until the step is applied.
    let sum: Vec<f32> = parts.gradients().unwrap().iter().map(|value| value * 4.0 / 5.0).collect();
    let loss = whole.accumulate(&rows).unwrap();
    assert_close(&sum, &whole.gradients().unwrap());
    assert!((losses[0] * 0.8 + losses[1] * 0.2 - loss).abs() < 1e-6);
    let (parts, whole) = (parts.apply().unwrap(), whole.apply().unwrap());
    assert!((parts.loss - whole.loss).abs() < 1e-6);
    assert!((parts.gradient_norm / whole.gradient_norm - 1.0).abs() < 1e-5);
    assert_eq!((parts.tokens, parts.step), (whole.tokens, whole.step));
}

#[test]
fn two_nodes_that_gather_vectors_and_sum_gradients_take_the_step_of_one() {
    let (model, rows) = (with_dropout(), ragged());
    let mut whole = trainer(&model, &dropping());
    let loss_of_one = whole.accumulate(&rows).unwrap();
    let wanted = whole.gradients().unwrap();
    let mut nodes = [trainer(&model, &dropping()), trainer(&model, &Setup { token_budget: 8, ..dropping() })];
    let parts: Vec<Embedded> = [&rows[..1], &rows[1..]]
        .iter()
        .zip(&nodes)
        .map(|(rows, node)| node.embed(rows, true).unwrap())
        .collect();
    let vectors: Vec<f32> = parts.iter().flat_map(|part| part.embeddings.clone()).collect();
    let facts: Vec<TextFact> = parts.iter().flat_map(|part| part.facts.clone()).collect();
    let mut sum = vec![0.0; wanted.len()];
    let mut first_text = 0;
    for (node, part) in nodes.iter_mut().zip(parts) {
        let value = node.loss(&vectors, &facts).unwrap();
        assert!((value.loss - loss_of_one).abs() < 1e-6 && value.rows == rows.len());
        let texts = part.facts.len();
        node.backward(part, &value, first_text).unwrap();
        first_text += texts;
        sum.iter_mut().zip(node.gradients().unwrap()).for_each(|(sum, value)| *sum += value);
    }
    assert_close(&sum, &wanted);
    let parameters = |node: &mut Trainer| {
        node.set_gradients(&sum).unwrap();
        let report = node.apply().unwrap();
        (report.loss.to_bits(), report.gradient_norm.to_bits(), node.adapter().parameters().unwrap())
    };
    let [first, second] = &mut nodes;
    assert!(parameters(first) == parameters(second), "nodes drift apart");
    assert!(nodes[0].set_gradients(&sum[1..]).is_err());
}

#[test]
fn a_part_that_is_not_in_the_loss_is_refused() {
    let mut node = trainer(&bert(), &dropping());
    let embedded = node.embed(&ragged(), true).unwrap();
    let value = node.loss(&embedded.embeddings, &embedded.facts).unwrap();
    assert!(node.backward(embedded, &value, 1).is_err());
}
