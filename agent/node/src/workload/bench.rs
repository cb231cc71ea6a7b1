//! `ctl bench encode|train`: how fast this machine is, measured as the peers in `docs/performance.md` are.
//!
//! ```text
//! encode   all sentences of an STS file, tokenizing included, best of three rounds after a warm-up; then 200 single
//!          sentences for the latency
//! train    32 pairs a step in file order, CoSENT, rank 8 on all linear layers, dropout 0.05, AdamW, clipping at 1;
//!          20 steps after 3 of warm-up, tokenizing included
//! ```

use std::path::PathBuf;
use std::time::Instant;

use motley_scheduler_core::document::train::Loss;
use motley_scheduler_core::document::{BackendKind, Model, Quantization};
use motley_scheduler_core::unit::Bytes;
use serde::Serialize;

use super::WorkloadError;
use super::model::{TextModel, open_device, open_model, tokenize};
use super::program::peak_resident_bytes;
use super::rows::{RowFile, RowForm};
use super::train::bench_trainer;
use crate::models::{Fetched, ModelSettings, Places, unstoppable};
use motley_ops::TrainRow;

/// What to measure.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    pub model: Model,
    pub settings: ModelSettings,
    /// JSONL with sentence1, sentence2, score.
    pub data: PathBuf,
    pub quantization: Option<Quantization>,
    pub threads: Option<u32>,
    /// Optimizer steps of `bench train` after the warm-up: 1 to [`TRAIN_STEPS_MAX`].
    pub steps: u32,
}

/// One line of `ctl bench`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BenchLine {
    pub implementation: String,
    pub threads: usize,
    /// Encoding only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sentences_per_s: Option<f64>,
    /// Training only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pairs_per_s: Option<f64>,
    /// Real tokens: nothing is padded.
    pub tokens_per_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms_p50: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms_p99: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ms_per_step: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ms_per_step_p50: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ms_per_step_p99: Option<f64>,
    pub peak_memory_mib: Option<u64>,
}

/// Default of [`BenchOptions::steps`].
pub const TRAIN_STEPS: u32 = 20;

/// Most of [`BenchOptions::steps`]: hours of measuring. Each is kept, for the percentiles.
pub const TRAIN_STEPS_MAX: u32 = 100_000;

// Rows are numbered in 32 bits.
const _: () = assert!((WARM_UP_STEPS + TRAIN_STEPS_MAX) as u64 * BATCH_PAIRS as u64 <= u32::MAX as u64);

const ROUNDS: usize = 3;
const WARM_UP_TEXTS: usize = 64;
const LATENCY_TEXTS: usize = 200;
const WARM_UP_STEPS: u32 = 3;
const BATCH_PAIRS: u32 = 32;

/// Measures encoding.
///
/// # Errors
/// Model or data that cannot be used.
pub fn bench_encode(
    options: &BenchOptions,
    progress: &mut dyn FnMut(Fetched),
) -> Result<BenchLine, WorkloadError> {
    let rows = open_rows(options)?;
    let mut texts = Vec::new();
    for number in 0..rows.count() {
        texts.extend(rows.row(number)?.texts);
    }
    let model = load(options, progress)?;
    let encode = |texts: &[String]| model.embed(texts, "", &mut |_| Ok(()));
    encode(&texts[..WARM_UP_TEXTS.min(texts.len())])?;
    let (mut seconds, mut tokens) = (f64::INFINITY, 0);
    for _ in 0..ROUNDS {
        let began = Instant::now();
        tokens = encode(&texts)?.tokens;
        seconds = seconds.min(began.elapsed().as_secs_f64());
    }
    let mut latencies = Vec::new();
    for text in &texts[..LATENCY_TEXTS.min(texts.len())] {
        let began = Instant::now();
        encode(std::slice::from_ref(text))?;
        latencies.push(began.elapsed().as_secs_f64() * 1e3);
    }
    latencies.sort_by(f64::total_cmp);
    Ok(BenchLine {
        sentences_per_s: Some(rounded(texts.len() as f64 / seconds, 1)),
        tokens_per_s: rounded(tokens as f64 / seconds, 0),
        latency_ms_p50: Some(rounded(percentile(&latencies, 0.5), 2)),
        latency_ms_p99: Some(rounded(percentile(&latencies, 0.99), 2)),
        ..line(options, &model, "")
    })
}

/// Measures training.
///
/// # Errors
/// Model or data that cannot be used.
pub fn bench_train(
    options: &BenchOptions,
    progress: &mut dyn FnMut(Fetched),
) -> Result<BenchLine, WorkloadError> {
    let rows = open_rows(options)?;
    let model = load(options, progress)?;
    let mut line = line(options, &model, if options.quantization.is_some() { " qlora" } else { " lora" });
    let TextModel { tokenizer, encoder, backend } = model;
    let mut trainer = bench_trainer(encoder, u64::from(WARM_UP_STEPS + options.steps))?;
    let (mut milliseconds, mut tokens) = (Vec::new(), 0);
    for step in 0..WARM_UP_STEPS + options.steps {
        let began = Instant::now();
        let numbers: Vec<u32> =
            (0..BATCH_PAIRS).map(|row| (step * BATCH_PAIRS + row) % rows.count()).collect();
        let pairs = numbers.iter().map(|&number| rows.row(number)).collect::<Result<Vec<_>, _>>()?;
        let texts: Vec<&str> =
            pairs.iter().flat_map(|row| row.texts[..2].iter().map(String::as_str)).collect();
        let mut encoded =
            tokenize(&tokenizer, &*backend, &texts, "")?.into_iter().map(|encoded| encoded.text);
        let row = |(number, row): (&u32, &super::rows::TrainingRow)| TrainRow {
            sample: *number,
            texts: encoded.by_ref().take(2).collect(),
            label: row.label,
        };
        let batch: Vec<TrainRow> = numbers.iter().zip(&pairs).map(row).collect();
        trainer.accumulate(&batch)?;
        let applied = trainer.apply()?;
        if step >= WARM_UP_STEPS {
            tokens += applied.tokens;
            milliseconds.push(began.elapsed().as_secs_f64() * 1e3);
        }
    }
    let (all, steps) = (milliseconds.iter().sum::<f64>(), f64::from(options.steps));
    milliseconds.sort_by(f64::total_cmp);
    line.pairs_per_s = Some(rounded(steps * f64::from(BATCH_PAIRS) / all * 1e3, 1));
    line.tokens_per_s = rounded(tokens as f64 / all * 1e3, 0);
    line.ms_per_step = Some(rounded(all / steps, 1));
    line.ms_per_step_p50 = Some(rounded(percentile(&milliseconds, 0.5), 1));
    line.ms_per_step_p99 = Some(rounded(percentile(&milliseconds, 0.99), 1));
    line.peak_memory_mib = peak_resident_bytes().map(|bytes| bytes >> 20);
    Ok(line)
}

fn open_rows(options: &BenchOptions) -> Result<RowFile, WorkloadError> {
    let name = options.data.display().to_string();
    Ok(RowFile::open(&options.data, &name, RowForm::of(&Loss::Cosent { scale: 20.0 }))?)
}

fn load(options: &BenchOptions, progress: &mut dyn FnMut(Fetched)) -> Result<TextModel, WorkloadError> {
    let places = Places::default();
    let mut fetched = unstoppable(progress);
    let open = open_model(&options.model, None, &options.settings, &places, &mut fetched)?;
    let backend = open_device(BackendKind::Cpu, options.threads, Bytes(0))?;
    open.load(&backend, options.quantization, false)
}

fn line(options: &BenchOptions, model: &TextModel, what: &str) -> BenchLine {
    let info = model.backend.info();
    let precision = if options.quantization.is_some() { "nf4" } else { "float32" };
    BenchLine {
        implementation: format!("Motley cpu{what} {precision}"),
        threads: info.threads,
        sentences_per_s: None,
        pairs_per_s: None,
        tokens_per_s: 0.0,
        latency_ms_p50: None,
        latency_ms_p99: None,
        ms_per_step: None,
        ms_per_step_p50: None,
        ms_per_step_p99: None,
        peak_memory_mib: peak_resident_bytes().map(|bytes| bytes >> 20),
    }
}

/// Linear between neighbours, as numpy's default.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let position = share * last as f64;
    let below = position as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (position - below as f64)
}

fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_numpys() {
        let values: Vec<f64> = (0..200).map(f64::from).collect();
        assert_eq!((percentile(&values, 0.5), rounded(percentile(&values, 0.99), 2)), (99.5, 197.01));
        assert!(percentile(&[], 0.5).is_nan());
    }
}
