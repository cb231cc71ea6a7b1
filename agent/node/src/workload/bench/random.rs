//! Random weights of a known shape and random token ids: any model's speed and memory, without a download.
//!
//! ```text
//! encode   `texts` texts of `length` tokens, best of three rounds after one of warm-up; then 200 single ones for the
//!          latency
//! train    pairs of such texts, tokens_per_step tokens a step; adapter and optimizer as `texts` has them
//! ```

use std::time::Instant;

use motley_ops::{Encoder, LoadOptions, ModelConfig, ModelDropout, TokenizedText, TrainRow, Work};

use super::line::{BenchLine, rounded};
use super::{Bench, BenchOptions, LATENCY_TEXTS, ROUNDS, WARM_UP_STEPS, nf4};
use crate::workload::WorkloadError;
use crate::workload::train::bench_trainer;

/// A shape, and the texts it is given.
pub(super) struct Source {
    name: String,
    config: ModelConfig,
    length: usize,
    texts: usize,
}

const SEED: u64 = 42;

/// As many texts a step as `texts` has.
const STEP_TEXTS: usize = 64;

impl Source {
    /// # Errors
    /// An unknown shape, or texts that it cannot take.
    pub(super) fn new(name: &str, length: u32, texts: u32) -> Result<Source, WorkloadError> {
        let config = super::shape_config(name)?;
        let (length, texts) = (length as usize, texts as usize);
        if length == 0 || length > config.max_positions() || texts == 0 {
            let most = config.max_positions();
            return Err(WorkloadError::Unusable {
                what: format!("{texts} texts of {length} tokens: {name} takes texts of 1 to {most} tokens"),
                hint: "give --length within that, and one text at least",
            });
        }
        Ok(Source { name: name.to_owned(), config, length, texts })
    }

    fn load(&self, bench: &Bench, options: &BenchOptions) -> Result<Encoder, WorkloadError> {
        let load = LoadOptions {
            quantization: nf4(options.quantization),
            normalize: Some(true),
            dropout: ModelDropout::Off,
        };
        let mut encoder = Encoder::random(bench.backend.clone(), &self.config, &load, SEED)?;
        if let Some(tokens) = options.pass_tokens {
            encoder.set_pass_tokens(tokens as usize);
        }
        Ok(encoder)
    }

    /// `count` texts of random ids, the same for the same number of the first of them.
    fn random_texts(&self, first: usize, count: usize) -> Vec<TokenizedText> {
        let text = |number: usize| {
            let mut state = (SEED ^ number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let id = |_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                ((state >> 16) % self.config.vocabulary as u64) as u32
            };
            TokenizedText { ids: (0..self.length).map(id).collect(), type_ids: Vec::new() }
        };
        (first..first + count).map(text).collect()
    }

    fn work(&self, texts: usize) -> Work {
        Work::of(&self.config, std::iter::repeat_n(self.length, texts))
    }

    fn title(&self, what: &str) -> String {
        format!("{what} {} x{}", self.name, self.length)
    }
}

pub(super) fn encode(options: &BenchOptions, source: &Source) -> Result<BenchLine, WorkloadError> {
    let bench = Bench::open(options)?;
    let mut encoder = source.load(&bench, options)?;
    let texts = source.random_texts(0, source.texts);
    let mut seconds = f64::INFINITY;
    for _ in 0..=ROUNDS {
        let began = Instant::now();
        encoder.embed(&texts)?;
        // The first round, in which kernels are made and memory is touched, is never the best.
        seconds = seconds.min(began.elapsed().as_secs_f64());
    }
    let tokens = source.texts * source.length;
    let a_pass = (encoder.pass_tokens() / source.length).max(1);
    let passes = source.texts.div_ceil(a_pass);
    let mut line = BenchLine {
        sentences_per_s: Some(rounded(source.texts as f64 / seconds, 1)),
        tokens_per_s: rounded(tokens as f64 / seconds, 0),
        ms_per_pass: Some(rounded(seconds / passes as f64 * 1e3, 3)),
        ..BenchLine::new(&bench, options, &source.title(""))
    };
    line.latencies(&mut encoder, |encoder| {
        let single = |text| {
            let began = Instant::now();
            encoder.embed(std::slice::from_ref(text))?;
            Ok(began.elapsed().as_secs_f64() * 1e3)
        };
        texts.iter().cycle().take(LATENCY_TEXTS).map(single).collect()
    })?;
    Ok(line.finish(&bench, source.work(source.texts).embedding() / seconds))
}

pub(super) fn train(options: &BenchOptions, source: &Source) -> Result<BenchLine, WorkloadError> {
    let training = &options.training;
    let texts = training.tokens_per_step.map_or(STEP_TEXTS, |tokens| tokens as usize / source.length);
    let pairs = texts / 2;
    if pairs < 2 {
        return Err(WorkloadError::Unusable {
            what: format!("{texts} texts of {} tokens make {pairs} pairs a step", source.length),
            hint: "a loss compares two pairs at least: raise --tokens-per-step, or lower --length",
        });
    }
    let bench = Bench::open(options)?;
    let encoder = source.load(&bench, options)?;
    let mut trainer = bench_trainer(encoder, &training.settings())?;
    let (mut milliseconds, mut tokens) = (Vec::new(), 0);
    for step in 0..(WARM_UP_STEPS + training.steps) as usize {
        let batch = source.pairs(step * pairs, pairs);
        let began = Instant::now();
        trainer.accumulate(&batch)?;
        let applied = trainer.apply()?;
        if step >= WARM_UP_STEPS as usize {
            milliseconds.push(began.elapsed().as_secs_f64() * 1e3);
            tokens += applied.tokens;
        }
    }
    let what = if options.quantization.is_some() { " qlora" } else { " lora" };
    let mut line = BenchLine::new(&bench, options, &source.title(what));
    let seconds = milliseconds.iter().sum::<f64>() / 1e3;
    let again = training.again((2 * pairs * source.length) as u64);
    let operations = source.work(2 * pairs).adapter_training(again) * f64::from(training.steps);
    line.steps(milliseconds, u64::from(training.steps) * pairs as u64, tokens);
    Ok(line.finish(&bench, operations / seconds))
}

impl Source {
    /// Rows of two texts with a label, which losses that need none leave alone.
    fn pairs(&self, first: usize, count: usize) -> Vec<TrainRow> {
        let mut texts = self.random_texts(2 * first, 2 * count).into_iter();
        let row = |number: usize| TrainRow {
            sample: number as u32,
            texts: texts.by_ref().take(2).collect(),
            label: Some((number % 5) as f32 / 4.0),
        };
        (first..first + count).map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::DeviceChoice;
    use crate::workload::bench::{BenchLoss, Subject, TrainingOptions, bench_encode, bench_train};
    use motley_scheduler_core::document::Quantization;

    fn options(shape: &str, length: u32, loss: BenchLoss) -> BenchOptions {
        BenchOptions {
            subject: Subject::Random { shape: shape.into(), length, texts: 2 },
            quantization: Some(Quantization::Nf4 { double_quantization: true }),
            device: DeviceChoice::cpu(Some(1)),
            pass_tokens: Some(8),
            training: TrainingOptions {
                steps: 1,
                tokens_per_step: Some(4 * length),
                loss,
                token_budget: 2 * length,
                checkpoint_layers: true,
            },
        }
    }

    #[test]
    fn a_shape_is_measured_without_any_file() {
        let line = bench_encode(&options("minilm", 8, BenchLoss::Cosent), &mut |_| {}).unwrap();
        assert!(line.tokens_per_s > 0.0 && line.share_of_peak > 0.0 && line.device_peak_mib["weights"] > 5.0);
        assert_eq!((line.device.as_str(), line.precision.as_str()), ("cpu:0", "f32"));
        for loss in [BenchLoss::Cosent, BenchLoss::Infonce] {
            let line = bench_train(&options("minilm", 8, loss), &mut |_| {}).unwrap();
            assert!(line.tflops > 0.0 && line.device_peak_mib["optimizer"] > 0.0, "{line:?}");
        }
    }

    #[test]
    fn shapes_and_sizes_that_cannot_be_are_refused_with_what_can() {
        let complaint = |shape: &str, length| {
            bench_train(&options(shape, length, BenchLoss::Cosent), &mut |_| {}).unwrap_err().to_string()
        };
        assert!(complaint("bert", 8).contains("there are minilm, bge-small"));
        assert!(complaint("minilm", 513).contains("1 to 512 tokens"));
        let mut few = options("minilm", 8, BenchLoss::Cosent);
        few.training.tokens_per_step = Some(16);
        assert!(bench_train(&few, &mut |_| {}).unwrap_err().to_string().contains("make 1 pairs a step"));
    }
}
