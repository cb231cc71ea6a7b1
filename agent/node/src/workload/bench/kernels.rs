//! Each product and kernel of a layer by itself, at the sizes of a model: time, and the share of what the device
//! reaches (products and attention: of a large square product; the rest: of its memory's bandwidth).
//!
//! Bytes are those that have to be moved: each element of a buffer once for each time that it is read or written.

use std::sync::Arc;

use motley_backends::{
    Backend, Buffer, Category, Direction, Epilogue, Launch, Linear, SourceDtype, Weight, WeightFormat,
    WeightPart, WeightSource,
};
use motley_kernels::{Arguments, Dtype, Entry, attention, gelu, layer_norm, lora, nf4};
use motley_ops::{ModelConfig, Role};
use serde::Serialize;

use super::line::rounded;
use crate::devices::DeviceChoice;
use crate::devices::measure::{Rates, activations, best_seconds, measure, random_bf16};
use crate::workload::WorkloadError;

/// One line of `ctl bench kernels`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KernelLine {
    pub kernel: String,
    pub device: String,
    pub precision: String,
    pub ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tflops: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gb_per_s: Option<f64>,
    pub share_of_peak: f64,
}

/// Rank of the low-rank products.
const RANK: usize = 8;

/// What a case does.
#[derive(Debug, Clone, Copy)]
enum Amount {
    Operations(f64),
    Bytes(f64),
}

/// Measures at `texts` texts of `length` tokens of a shape. The first two lines are the device's own rates.
///
/// # Errors
/// An unknown shape, a device that failed or has too little memory.
pub fn bench_kernels(
    choice: &DeviceChoice,
    name: &str,
    [length, texts]: [u32; 2],
) -> Result<Vec<KernelLine>, WorkloadError> {
    let config = super::shape_config(name)?;
    let choice = choice.settled();
    let rates = measure(&choice.open()?.backend)?;
    let backend = choice.open()?.backend;
    let (length, texts) = (length.max(1) as usize, texts.max(1) as usize);
    let mut table = Table { backend, rates, config, length, texts, lines: Vec::new() };
    table.line("device.gemm", 0.0, Amount::Operations(rates.gemm));
    table.line("device.bandwidth", 0.0, Amount::Bytes(rates.bandwidth));
    table.products()?;
    table.attention()?;
    table.rows()?;
    table.low_rank()?;
    table.dequantize()?;
    Ok(table.lines)
}

struct Table {
    backend: Arc<dyn Backend>,
    rates: Rates,
    config: ModelConfig,
    length: usize,
    texts: usize,
    lines: Vec<KernelLine>,
}

impl Table {
    fn tokens(&self) -> usize {
        self.length * self.texts
    }

    /// Bytes of an activation.
    fn width(&self) -> f64 {
        self.backend.info().precision.bytes() as f64
    }

    /// `seconds` 0: the amount is a rate already.
    fn line(&mut self, kernel: &str, seconds: f64, amount: Amount) {
        let rate = |amount: f64| if seconds > 0.0 { amount / seconds } else { amount };
        let (tflops, gb_per_s, share) = match amount {
            Amount::Operations(count) => (Some(rate(count) / 1e12), None, rate(count) / self.rates.gemm),
            Amount::Bytes(count) => (None, Some(rate(count) / 1e9), rate(count) / self.rates.bandwidth),
        };
        let info = self.backend.info();
        self.lines.push(KernelLine {
            kernel: kernel.to_owned(),
            device: info.name.clone(),
            precision: info.precision.name().to_owned(),
            ms: rounded(seconds * 1e3, 4),
            tflops: tflops.map(|value| rounded(value, 4)),
            gb_per_s: gb_per_s.map(|value| rounded(value, 2)),
            share_of_peak: rounded(share, 3),
        });
    }

    fn products(&mut self) -> Result<(), WorkloadError> {
        let activation = match self.config.decoder {
            None => Epilogue::BiasActivation(self.config.activation),
            Some(_) => Epilogue::None,
        };
        let stacked = |roles: &[Role]| {
            let widths = roles.iter().map(|role| role.widths(&self.config));
            widths.fold([0, 0], |[out, _], [inputs, outputs]| [out + outputs, inputs])
        };
        let cases = [
            ("qkv", stacked(&[Role::Query, Role::Key, Role::Value]), Epilogue::Bias),
            ("attention_output", stacked(&[Role::AttentionOutput]), Epilogue::Bias),
            ("intermediate", stacked(&[Role::Intermediate]), activation),
            ("output", stacked(&[Role::Output]), Epilogue::Bias),
        ];
        for (name, [out, width], epilogue) in cases {
            let operations = Amount::Operations(2.0 * (out * width * self.tokens()) as f64);
            let input = self.buffer(self.tokens() * width, Dtype::Activation)?;
            let output = self.buffer(self.tokens() * out, Dtype::Activation)?;
            let formats =
                [("", WeightFormat::F32), ("nf4 ", WeightFormat::Nf4 { double_quantization: true })];
            for (kind, format) in formats {
                let weight = self.weight([out, width], format)?;
                let linear = |direction| {
                    let (input, output) = match direction {
                        Direction::Forward => (&input, &output),
                        Direction::Backward => (&output, &input),
                    };
                    let epilogue = if direction == Direction::Forward { epilogue } else { Epilogue::None };
                    let rows = self.tokens();
                    let (input, output, weight) = (input.all(), output.all(), &weight);
                    let accumulate = false;
                    Linear { input, weight, output, rows, epilogue, direction, accumulate }
                };
                let seconds =
                    |direction| best_seconds(&*self.backend, || self.backend.linear(&linear(direction)));
                let (forward, backward) = (seconds(Direction::Forward)?, seconds(Direction::Backward)?);
                self.line(&format!("product {kind}{name} {width}x{out} forward"), forward, operations);
                self.line(&format!("product {kind}{name} {width}x{out} backward"), backward, operations);
            }
        }
        Ok(())
    }

    fn attention(&mut self) -> Result<(), WorkloadError> {
        let (tokens, ModelConfig { heads, kv_heads, head_dim, .. }) = (self.tokens(), self.config.clone());
        let (query, shared) = (heads * head_dim, kv_heads * head_dim);
        let stride = query + 2 * shared;
        let causal = self.config.decoder.as_ref().is_some_and(|decoder| decoder.is_causal);
        let args = attention::Args {
            tokens: tokens as u32,
            texts: self.texts as u32,
            longest: self.length as u32,
            heads: heads as u32,
            kv_heads: kv_heads as u32,
            head_dim: head_dim as u32,
            stride: stride as u32,
            query: 0,
            key: query as u32,
            value: (query + shared) as u32,
            scale: 1.0 / (head_dim as f32).sqrt(),
            causal: u32::from(causal),
            dropout: 0.0,
            seed_low: 0,
            seed_high: 0,
            step: 0,
            site: 0,
        };
        let ends: Vec<u32> = (0..=self.texts).map(|text| (text * self.length) as u32).collect();
        let names: Vec<u32> = (0..tokens)
            .flat_map(|token| [(token / self.length) as u32, (token % self.length) as u32])
            .collect();
        let (ends, names) = (self.numbers(&ends)?, self.numbers(&names)?);
        let [qkv, dqkv] = [self.activation(stride * tokens)?, self.activation(stride * tokens)?];
        let [out, dout] = [self.activation(query * tokens)?, self.activation(query * tokens)?];
        let sums = self.buffer(tokens * heads, Dtype::F32)?;
        // Scores and their product with v, half of them if causal; the way back takes the scores again, and four
        // products more.
        let seen = if causal { 0.5 } else { 1.0 };
        let operations = 4.0 * (query * tokens * self.length) as f64 * seen;
        let forward = self.time(&attention::FORWARD, &args, &[&qkv, &ends, &names, &out, &sums])?;
        self.line("attention.forward", forward, Amount::Operations(operations));
        let buffers = [&dout, &qkv, &out, &sums, &ends, &names, &dqkv];
        let backward = self.time(&attention::BACKWARD, &args, &buffers)?;
        self.line("attention.backward", backward, Amount::Operations(2.5 * operations));
        Ok(())
    }

    fn rows(&mut self) -> Result<(), WorkloadError> {
        let (tokens, hidden) = (self.tokens(), self.config.hidden);
        let count = tokens * hidden;
        let args = layer_norm::Args { rows: tokens as u32, hidden: hidden as u32, epsilon: 1e-12 };
        let [x, residual, y] = self.three(count)?;
        let [gamma, beta] = [self.buffer(hidden, Dtype::F32)?, self.buffer(hidden, Dtype::F32)?];
        let [mean, deviation] = [self.buffer(tokens, Dtype::F32)?, self.buffer(tokens, Dtype::F32)?];
        let moved = |times: f64, count: usize| Amount::Bytes(times * count as f64 * self.width());
        let (norm, norm_back) = (moved(4.0, count), moved(3.0, count));
        let wide = tokens * self.config.intermediate;
        let (activation, activation_back) = (moved(2.0, wide), moved(3.0, wide));
        let buffers = [&x, &residual, &gamma, &beta, &y, &mean, &deviation];
        let kept =
            layer_norm::ResidualArgs { rows: args.rows, hidden: args.hidden, epsilon: args.epsilon, keep: 1 };
        let seconds = self.time(&layer_norm::RESIDUAL_FORWARD, &kept, &buffers)?;
        self.line("layer_norm.residual_forward", seconds, norm);
        let buffers = [&residual, &x, &gamma, &mean, &deviation, &y];
        let seconds = self.time(&layer_norm::BACKWARD, &args, &buffers)?;
        self.line("layer_norm.backward", seconds, norm_back);
        drop([x, residual, y]);
        let args = gelu::Args { count: wide as u32, kind: self.config.activation as u32 };
        let [x, dy, y] = self.three(wide)?;
        let seconds = self.time(&gelu::FORWARD, &args, &[&x, &y])?;
        self.line("gelu.forward", seconds, activation);
        let seconds = self.time(&gelu::BACKWARD, &args, &[&dy, &x, &y])?;
        self.line("gelu.backward", seconds, activation_back);
        Ok(())
    }

    fn low_rank(&mut self) -> Result<(), WorkloadError> {
        let (tokens, width) = (self.tokens(), self.config.hidden);
        let args = lora::Args {
            rows: tokens as u32,
            rank: RANK as u32,
            width: width as u32,
            stride: width as u32,
            offset: 0,
            scale: 1e-3,
        };
        let x = self.buffer(tokens * width, Dtype::Activation)?;
        let [m, g] = [self.buffer(RANK * width, Dtype::F32)?, self.buffer(RANK * width, Dtype::F32)?];
        let h = self.buffer(tokens * RANK, Dtype::F32)?;
        let once = (tokens * width) as f64 * self.width() + (4 * tokens * RANK) as f64;
        let twice = once + (tokens * width) as f64 * self.width();
        let dot = self.time(&lora::DOT, &args, &[&x, &m, &h])?;
        self.line("lora.dot", dot, Amount::Bytes(once));
        let outer = self.time(&lora::OUTER, &args, &[&h, &x, &g])?;
        self.line("lora.outer", outer, Amount::Bytes(once));
        let expand = self.time(&lora::EXPAND, &args, &[&h, &m, &x])?;
        self.line("lora.expand", expand, Amount::Bytes(twice));
        Ok(())
    }

    fn dequantize(&mut self) -> Result<(), WorkloadError> {
        let count = self.config.hidden * self.config.intermediate;
        let args = nf4::Args { count: count as u32 };
        let packed = self.buffer(count.div_ceil(2).next_multiple_of(4), Dtype::U8)?;
        let scales = self.buffer(count.div_ceil(nf4::BLOCK), Dtype::F32)?;
        let out = self.buffer(count, Dtype::Activation)?;
        let moved = count as f64 * (0.5 + 4.0 / nf4::BLOCK as f64 + self.width());
        let seconds = self.time(&nf4::DEQUANTIZE, &args, &[&packed, &scales, &out])?;
        self.line("nf4.dequantize", seconds, Amount::Bytes(moved));
        Ok(())
    }

    fn time<A: Arguments>(
        &self,
        entry: &'static Entry,
        args: &A,
        buffers: &[&Buffer],
    ) -> Result<f64, WorkloadError> {
        let views: Vec<_> = buffers.iter().map(|buffer| buffer.all()).collect();
        let launch = Launch::new(entry, args, &views);
        Ok(best_seconds(&*self.backend, || self.backend.launch(&launch))?)
    }

    /// Random elements.
    fn buffer(&self, count: usize, dtype: Dtype) -> Result<Buffer, WorkloadError> {
        let halves = |count| random_bf16(count);
        let bytes = match dtype {
            Dtype::U8 => halves(count.div_ceil(2)),
            Dtype::Activation => activations(&halves(count), self.backend.info().precision),
            Dtype::F32 | Dtype::U32 => activations(&halves(count), motley_backends::Precision::F32),
        };
        let buffer = self.backend.allocate_unfilled(bytes.len(), Category::Activations)?;
        self.backend.upload(&bytes, buffer.all())?;
        Ok(buffer)
    }

    fn activation(&self, count: usize) -> Result<Buffer, WorkloadError> {
        self.buffer(count, Dtype::Activation)
    }

    fn three(&self, count: usize) -> Result<[Buffer; 3], WorkloadError> {
        Ok([self.activation(count)?, self.activation(count)?, self.activation(count)?])
    }

    fn numbers(&self, values: &[u32]) -> Result<Buffer, WorkloadError> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let buffer = self.backend.allocate_unfilled(bytes.len(), Category::Activations)?;
        self.backend.upload(&bytes, buffer.all())?;
        Ok(buffer)
    }

    fn weight(&self, shape: [usize; 2], format: WeightFormat) -> Result<Weight, WorkloadError> {
        let values = random_bf16(shape[0] * shape[1]);
        let part = WeightPart { bytes: &values, shape, dtype: SourceDtype::Bf16 };
        let bias = vec![0.01; shape[0]];
        Ok(self.backend.prepare_weight(&WeightSource { parts: &[part], bias: Some(&bias), format })?)
    }
}
