//! InfoNCE against its specification, and the specification's gradient against central differences.

// Helpers of tests fail by panicking too.
#![allow(clippy::unwrap_used)]

mod support;

use motley_ops::{LossConfig, RowIdentity, TextFact, Trainer};
use safetensors::Dtype;
use support::difference;
use support::infonce::{Rows, Settings, evaluate};
use support::small::{HIDDEN, Seeded, Setup, SmallModel, trainer};

/// Texts of each row: pairs, and rows with one and with two hard negatives.
const RAGGED: [usize; 6] = [2, 4, 2, 3, 2, 3];

const PLAIN: Settings =
    Settings { temperature: 0.2, symmetric: false, in_batch: true, margin: None, duplicates: false };

fn all_settings() -> Vec<Settings> {
    let mut all = Vec::new();
    for (symmetric, in_batch) in [(false, true), (true, true), (false, false)] {
        for margin in [None, Some(0.02)] {
            for duplicates in [false, true] {
                all.push(Settings { symmetric, in_batch, margin, duplicates, ..PLAIN });
            }
        }
    }
    all.push(Settings { temperature: 0.02, symmetric: true, ..PLAIN });
    all
}

/// Vectors and hashes. Row 2 has the anchor of row 0, and row 4 the positive of row 3 among others.
fn data(counts: &[usize]) -> (Vec<f32>, Vec<u64>) {
    let texts: usize = counts.iter().sum();
    let mut x = Seeded::new(3).values(texts * HIDDEN, 1.0 / 64.0);
    let mut hashes: Vec<u64> = (0..texts as u64).collect();
    let first = |row: usize| counts[..row].iter().sum::<usize>();
    if counts.len() > 4 {
        for (to, from) in [(first(2), first(0)), (first(4) + 1, first(3) + 1)] {
            hashes[to] = hashes[from];
            x.copy_within(from * HIDDEN..(from + 1) * HIDDEN, to * HIDDEN);
        }
    }
    (x, hashes)
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|value| f64::from(*value)).collect()
}

#[test]
fn gradient_of_the_specification_is_that_of_central_differences() {
    let (x, hashes) = data(&RAGGED);
    let (x, rows) = (wide(&x), Rows { counts: &RAGGED, hashes: &hashes });
    for settings in all_settings() {
        let (_, gradient) = evaluate(&x, HIDDEN, &rows, &settings);
        let largest = gradient.iter().fold(1e-3f64, |a, b| a.max(b.abs()));
        for i in (0..x.len()).step_by(3) {
            let along = |delta: f64| {
                let mut moved = x.clone();
                moved[i] += delta;
                evaluate(&moved, HIDDEN, &rows, &settings).0
            };
            let wanted = difference(along, 1e-5);
            let error = (gradient[i] - wanted).abs();
            assert!(error <= 1e-6 * largest, "{settings:?} {i}: {} {wanted}", gradient[i]);
        }
    }
}

fn trainer_of(settings: &Settings) -> Trainer {
    let loss = LossConfig::Infonce {
        temperature: settings.temperature as f32,
        symmetric: settings.symmetric,
        in_batch_negatives: settings.in_batch,
        false_negative_margin: settings.margin.map(|margin| margin as f32),
        mask_duplicates: settings.duplicates,
    };
    trainer(&SmallModel::new("bert", "mean", Dtype::F32), &Setup { loss, ..Setup::default() })
}

fn facts(counts: &[usize], hashes: &[u64]) -> Vec<TextFact> {
    let names = counts
        .iter()
        .enumerate()
        .flat_map(|(row, count)| (0..*count as u8).map(move |slot| RowIdentity { sample: row as u32, slot }));
    names.zip(hashes).map(|(identity, hash)| TextFact { identity, label: None, hash: *hash }).collect()
}

/// A logit is a sum of 32 products divided by the temperature: its rounding, some 4·2⁻²⁴/T, is the relative error of
/// a probability, and 1/T is the size of the gradient too.
#[test]
fn fast_path_agrees_with_the_specification() {
    for counts in [&RAGGED[..], &[2], &[3], &[2, 2]] {
        let (x, hashes) = data(counts);
        for settings in all_settings() {
            let rows = Rows { counts, hashes: &hashes };
            let (loss, gradient) = evaluate(&wide(&x), HIDDEN, &rows, &settings);
            let got = trainer_of(&settings).loss(&x, &facts(counts, &hashes)).unwrap();
            let bound = 4.0 * 2f64.powi(-24) / settings.temperature;
            assert!((got.loss - loss).abs() <= bound * loss.max(1.0), "{settings:?}: {} {loss}", got.loss);
            let largest = gradient.iter().fold(1e-3f64, |a, b| a.max(b.abs()));
            for (i, (got, wanted)) in got.gradient.iter().zip(&gradient).enumerate() {
                let error = (f64::from(*got) - wanted).abs();
                assert!(error <= 4.0 * bound * largest, "{settings:?} {counts:?} {i}: {got} {wanted}");
            }
        }
    }
}

#[test]
fn every_setting_changes_the_loss_of_this_data() {
    let (x, hashes) = data(&RAGGED);
    let rows = Rows { counts: &RAGGED, hashes: &hashes };
    let loss = |settings: &Settings| evaluate(&wide(&x), HIDDEN, &rows, settings).0;
    for other in [
        Settings { symmetric: true, ..PLAIN },
        Settings { in_batch: false, ..PLAIN },
        Settings { margin: Some(0.02), ..PLAIN },
        Settings { duplicates: true, ..PLAIN },
    ] {
        assert!((loss(&other) - loss(&PLAIN)).abs() > 1e-3, "{other:?}");
    }
}
