//! A model and a data file, tokenizing included, as the peers in `docs/performance.md` are measured.
//!
//! ```text
//! encode   all sentences of an STS file, tokenizing included, best of three rounds after a warm-up; then 200 single
//!          sentences for the latency
//! train    32 pairs a step in file order, CoSENT, rank 8 on all linear layers, dropout 0.05, AdamW, clipping at 1;
//!          20 steps after 3 of warm-up, tokenizing included
//! ```

use std::path::Path;
use std::time::Instant;

use motley_ops::{TrainRow, Work};
use motley_scheduler_core::document::Model;
use motley_scheduler_core::document::train::Loss;

use super::line::{BenchLine, rounded};
use super::{Bench, BenchOptions, LATENCY_TEXTS, ROUNDS, TRAIN_STEPS_MAX, WARM_UP_STEPS};
use crate::models::{Fetched, ModelSettings, Places, unstoppable};
use crate::workload::WorkloadError;
use crate::workload::model::{TextModel, embed_window, open_model, tokenize};
use crate::workload::rows::{RowFile, RowForm, TrainingRow};
use crate::workload::train::bench_trainer;

/// Where model and texts come from.
pub(super) struct Source<'a> {
    pub(super) model: &'a Model,
    pub(super) settings: &'a ModelSettings,
    pub(super) data: &'a Path,
}

const WARM_UP_TEXTS: usize = 64;
const BATCH_PAIRS: u32 = 32;

// Rows are numbered in 32 bits.
const _: () = assert!((WARM_UP_STEPS + TRAIN_STEPS_MAX) as u64 * BATCH_PAIRS as u64 <= u32::MAX as u64);

pub(super) fn encode(
    options: &BenchOptions,
    source: &Source<'_>,
    progress: &mut dyn FnMut(Fetched),
) -> Result<BenchLine, WorkloadError> {
    let rows = open_rows(source)?;
    let mut texts = Vec::new();
    for number in 0..rows.count() {
        texts.extend(rows.row(number)?.texts);
    }
    let (bench, mut model) = load(options, source, progress)?;
    model.embed(&texts[..WARM_UP_TEXTS.min(texts.len())], "", &mut |_| Ok(()))?;
    let (mut seconds, mut tokens) = (f64::INFINITY, 0);
    for _ in 0..ROUNDS {
        let began = Instant::now();
        tokens = model.embed(&texts, "", &mut |_| Ok(()))?.tokens;
        seconds = seconds.min(began.elapsed().as_secs_f64());
    }
    let encoded = tokenize(&model.tokenizer, &*bench.backend, &texts, "")?;
    let work = Work::of(model.encoder.config(), encoded.iter().map(|encoded| encoded.text.ids.len()));
    let mut line = BenchLine {
        sentences_per_s: Some(rounded(texts.len() as f64 / seconds, 1)),
        tokens_per_s: rounded(tokens as f64 / seconds, 0),
        ..BenchLine::new(&bench, options, "")
    };
    let TextModel { tokenizer, encoder, backend } = &mut model;
    line.latencies(encoder, |encoder| {
        let single = |text| {
            let began = Instant::now();
            embed_window(encoder, tokenizer, &**backend, (std::slice::from_ref(text), ""))?;
            Ok(began.elapsed().as_secs_f64() * 1e3)
        };
        texts[..LATENCY_TEXTS.min(texts.len())].iter().map(single).collect()
    })?;
    Ok(line.finish(&bench, work.embedding() / seconds))
}

pub(super) fn train(
    options: &BenchOptions,
    source: &Source<'_>,
    progress: &mut dyn FnMut(Fetched),
) -> Result<BenchLine, WorkloadError> {
    let rows = open_rows(source)?;
    let (bench, model) = load(options, source, progress)?;
    let TextModel { tokenizer, encoder, backend } = model;
    let config = encoder.config().clone();
    let training = &options.training;
    let mut trainer = bench_trainer(encoder, &training.settings())?;
    let (mut milliseconds, mut tokens, mut operations) = (Vec::new(), 0, 0.0);
    for step in 0..WARM_UP_STEPS + training.steps {
        let began = Instant::now();
        let numbers: Vec<u32> =
            (0..BATCH_PAIRS).map(|row| (step * BATCH_PAIRS + row) % rows.count()).collect();
        let pairs = numbers.iter().map(|&number| rows.row(number)).collect::<Result<Vec<_>, _>>()?;
        let texts: Vec<&str> =
            pairs.iter().flat_map(|row| row.texts[..2].iter().map(String::as_str)).collect();
        let mut encoded =
            tokenize(&tokenizer, &*backend, &texts, "")?.into_iter().map(|encoded| encoded.text);
        let row = |(number, row): (&u32, &TrainingRow)| TrainRow {
            sample: *number,
            texts: encoded.by_ref().take(2).collect(),
            label: row.label,
        };
        let batch: Vec<TrainRow> = numbers.iter().zip(&pairs).map(row).collect();
        trainer.accumulate(&batch)?;
        let applied = trainer.apply()?;
        if step >= WARM_UP_STEPS {
            milliseconds.push(began.elapsed().as_secs_f64() * 1e3);
            tokens += applied.tokens;
            let lengths = batch.iter().flat_map(|row| row.texts.iter().map(|text| text.ids.len()));
            operations += Work::of(&config, lengths).adapter_training(training.again(applied.tokens));
        }
    }
    let what = if options.quantization.is_some() { " qlora" } else { " lora" };
    let mut line = BenchLine::new(&bench, options, what);
    let seconds = milliseconds.iter().sum::<f64>() / 1e3;
    line.steps(milliseconds, u64::from(training.steps * BATCH_PAIRS), tokens);
    Ok(line.finish(&bench, operations / seconds))
}

fn open_rows(source: &Source<'_>) -> Result<RowFile, WorkloadError> {
    let name = source.data.display().to_string();
    Ok(RowFile::open(source.data, &name, RowForm::of(&Loss::Cosent { scale: 20.0 }))?)
}

fn load(
    options: &BenchOptions,
    source: &Source<'_>,
    progress: &mut dyn FnMut(Fetched),
) -> Result<(Bench, TextModel), WorkloadError> {
    let places = Places::default();
    let mut fetched = unstoppable(progress);
    let open = open_model(source.model, None, source.settings, &places, &mut fetched)?;
    let bench = Bench::open(options)?;
    let mut model = open.load(&bench.backend, options.quantization, false)?;
    if let Some(tokens) = options.pass_tokens {
        model.encoder.set_pass_tokens(tokens as usize);
    }
    Ok((bench, model))
}
