//! Measures the kernels of one encoder layer of MiniLM's shape (hidden 384, 12 heads of 32, inner 1536, LoRA rank 8),
//! in the way in which the encoder uses them: the best single call of each, in microseconds.
//! `cargo run --release -p motley-backends --example layer [threads] [texts] [length]`

#![allow(clippy::print_stdout)] // the table is what it is for

use std::sync::Arc;
use std::time::Instant;

use motley_backends::{
    Backend, Buffer, Category, DeviceRequest, Direction, Epilogue, Launch, Linear, SourceDtype, View, Weight,
    WeightFormat, WeightPart, WeightSource, open,
};
use motley_kernels::{Arguments, Entry, adamw, attention, dropout, gelu, layer_norm, lora, normalize, pool};

const HIDDEN: usize = 384;
const INNER: usize = 1536;
const HEADS: usize = 12;
const RANK: usize = 8;

struct Bench {
    backend: Arc<dyn Backend>,
    tokens: usize,
    texts: usize,
    total: f64,
}

fn main() {
    let number = |i, default| std::env::args().nth(i).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (threads, texts, length) = (number(1, 1), number(2, 64), number(3, 14));
    let request = DeviceRequest { backend: "cpu".to_owned(), threads: Some(threads), ..Default::default() };
    let backend = open(&request).expect("the CPU is always there");
    println!("{} threads {threads}, {texts} texts of {length} tokens", backend.info().numerics_class);
    let mut bench = Bench { backend, tokens: texts * length, texts, total: 0.0 };
    let buffers = Buffers::new(&bench);
    products(&mut bench, &buffers, Direction::Forward);
    forward(&mut bench, &buffers);
    println!("forward of a layer: {:.0} us\n", std::mem::take(&mut bench.total));
    products(&mut bench, &buffers, Direction::Backward);
    backward(&mut bench, &buffers);
    println!("backward of a layer: {:.0} us\n", std::mem::take(&mut bench.total));
    lora(&mut bench, &buffers);
    println!("LoRA of a layer, forward and backward: {:.0} us", bench.total);
}

/// Buffers of one layer; contents do not matter to the clock, as long as they are ordinary numbers.
struct Buffers {
    wide: [Buffer; 4],
    cumulative: Buffer,
    rows: Buffer,
    vector: Buffer,
    statistics: [Buffer; 2],
    log_sum_exp: Buffer,
}

impl Buffers {
    fn new(bench: &Bench) -> Self {
        let random = |count: usize| {
            let mut state = 1u32;
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
            };
            bench.filled(&(0..count).map(|_| next()).collect::<Vec<f32>>())
        };
        let length = bench.tokens / bench.texts;
        let cumulative: Vec<u32> = (0..=bench.texts).map(|i| (i * length) as u32).collect();
        let rows: Vec<u32> =
            (0..bench.tokens).flat_map(|t| [(t / length) as u32, (t % length) as u32]).collect();
        Buffers {
            wide: std::array::from_fn(|_| random(bench.tokens * INNER)),
            cumulative: bench.filled(&cumulative),
            rows: bench.filled(&rows),
            vector: random(INNER),
            log_sum_exp: random(bench.tokens * HEADS),
            statistics: std::array::from_fn(|_| random(bench.tokens * HEADS)),
        }
    }
}

impl Bench {
    fn filled<T: bytemuck::Pod>(&self, values: &[T]) -> Buffer {
        let buffer = self.backend.allocate(size_of_val(values), Category::Activations).expect("memory");
        self.backend.upload(bytemuck::cast_slice(values), buffer.all()).expect("it fits");
        buffer
    }

    /// Prints the best time of `work`, and adds it `times` times to the total.
    fn time(&mut self, name: &str, times: usize, work: impl Fn(&dyn Backend) + Sync) {
        let mut best = f64::INFINITY;
        let backend = self.backend.clone();
        backend.run_in_pool(&mut || {
            for _ in 0..60 {
                let start = Instant::now();
                work(&*backend);
                best = best.min(start.elapsed().as_secs_f64() * 1e6);
            }
        });
        println!("{name:24} {best:8.1} us   x {times}");
        self.total += best * times as f64;
    }

    fn launch<A: Arguments + Sync>(
        &mut self,
        (entry, times): (&'static Entry, usize),
        args: A,
        buffers: &[View<'_>],
    ) {
        self.time(entry.name, times, |b| b.launch(&Launch::new(entry, &args, buffers)).expect("sound"));
    }
}

fn weight(backend: &dyn Backend, shape: [usize; 2]) -> Weight {
    let values: Vec<f32> = (0..shape[0] * shape[1]).map(|i| (i % 1000) as f32 / 1000.0 - 0.5).collect();
    let parts = [WeightPart { bytes: bytemuck::cast_slice(&values), shape, dtype: SourceDtype::F32 }];
    let bias = vec![0.1; shape[0]];
    let source = WeightSource { parts: &parts, bias: Some(&bias), format: WeightFormat::F32 };
    backend.prepare_weight(&source).expect("a sound weight")
}

fn products(bench: &mut Bench, buffers: &Buffers, direction: Direction) {
    let rows = bench.tokens;
    let gelu = Epilogue::BiasActivation(gelu::Kind::Exact);
    let all = [
        ("q, k, v", [3 * HIDDEN, HIDDEN], Epilogue::Bias),
        ("attention output", [HIDDEN, HIDDEN], Epilogue::Bias),
        ("inner, gelu", [INNER, HIDDEN], gelu),
        ("outer", [HIDDEN, INNER], Epilogue::Bias),
    ];
    for (name, shape, epilogue) in all {
        let weight = weight(&*bench.backend, shape);
        let epilogue = if direction == Direction::Forward { epilogue } else { Epilogue::None };
        bench.time(name, 1, |b| {
            let call = Linear {
                input: buffers.wide[0].all(),
                weight: &weight,
                output: buffers.wide[1].all(),
                rows,
                epilogue,
                direction,
                accumulate: false,
            };
            b.linear(&call).expect("sound");
        });
    }
    println!("{:24} {:8.1} us", "all products", bench.total);
}

fn attention_args(bench: &Bench) -> attention::Args {
    attention::Args {
        tokens: bench.tokens as u32,
        longest: (bench.tokens / bench.texts) as u32,
        texts: bench.texts as u32,
        heads: HEADS as u32,
        kv_heads: HEADS as u32,
        head_dim: (HIDDEN / HEADS) as u32,
        stride: 3 * HIDDEN as u32,
        query: 0,
        key: HIDDEN as u32,
        value: 2 * HIDDEN as u32,
        scale: 0.2,
        causal: 0,
        dropout: 0.0,
        seed_low: 1,
        seed_high: 2,
        step: 3,
        site: 4,
    }
}

fn norm_args(bench: &Bench) -> layer_norm::Args {
    layer_norm::Args { rows: bench.tokens as u32, hidden: HIDDEN as u32, epsilon: 1e-12 }
}

fn forward(bench: &mut Bench, buffers: &Buffers) {
    let [a, b, c, d] = buffers.wide.each_ref().map(Buffer::all);
    let [mean, deviation] = buffers.statistics.each_ref().map(Buffer::all);
    let (args, cumulative, rows) = (attention_args(bench), buffers.cumulative.all(), buffers.rows.all());
    bench.launch((&attention::FORWARD, 1), args, &[a, cumulative, rows, b, buffers.log_sum_exp.all()]);
    let (norm, vector) = (norm_args(bench), buffers.vector.all());
    let (rows, hidden, epsilon) = (norm.rows, norm.hidden, norm.epsilon);
    let args = layer_norm::ResidualArgs { rows, hidden, epsilon, keep: 1 };
    bench.launch((&layer_norm::RESIDUAL_FORWARD, 2), args, &[c, a, vector, vector, b, mean, deviation]);
    let (texts, hidden) = (bench.texts as u32, HIDDEN as u32);
    bench.launch((&pool::FORWARD, 0), pool::Args { texts, hidden, kind: 0 }, &[a, cumulative, d]);
    let args = normalize::Args { rows: texts, width: hidden };
    bench.launch((&normalize::FORWARD, 0), args, &[a, d, mean]);
    let args = gelu::Args { count: (bench.tokens * INNER) as u32, kind: 0 };
    bench.launch((&gelu::FORWARD, 0), args, &[a, b]);
}

fn backward(bench: &mut Bench, buffers: &Buffers) {
    let [a, b, c, d] = buffers.wide.each_ref().map(Buffer::all);
    let [mean, deviation] = buffers.statistics.each_ref().map(Buffer::all);
    let (args, cumulative, rows) = (attention_args(bench), buffers.cumulative.all(), buffers.rows.all());
    bench.launch((&attention::BACKWARD, 1), args, &[c, a, b, buffers.log_sum_exp.all(), cumulative, rows, d]);
    let (args, vector) = (norm_args(bench), buffers.vector.all());
    bench.launch((&layer_norm::BACKWARD, 2), args, &[a, b, vector, mean, deviation, d]);
    let args = gelu::Args { count: (bench.tokens * INNER) as u32, kind: 0 };
    bench.launch((&gelu::BACKWARD, 1), args, &[a, b, d]);
}

fn lora(bench: &mut Bench, buffers: &Buffers) {
    let [a, b, c, _] = buffers.wide.each_ref().map(Buffer::all);
    // Five square and, for the feed-forward block, two oblong targets: 384 wide 10 + 2 times, 1536 wide twice.
    for (width, times) in [(HIDDEN, 10), (INNER, 2)] {
        let args = lora::Args {
            rows: bench.tokens as u32,
            rank: RANK as u32,
            width: width as u32,
            stride: width as u32,
            offset: 0,
            scale: 2.0,
        };
        println!("width {width}");
        bench.launch((&lora::DOT, times), args, &[a, b, c]);
        bench.launch((&lora::EXPAND, times), args, &[a, b, c]);
        bench.launch((&lora::OUTER, times), args, &[a, b, c]);
    }
    let count = RANK * (HIDDEN * 10 + INNER * 2);
    let args = adamw::Args {
        count: count as u32,
        decay: 0.999,
        beta1: 0.9,
        beta2: 0.999,
        step_size: 1e-5,
        correction2_root: 0.1,
        epsilon: 1e-8,
        gradient_scale: 1.0,
    };
    let moment = bench.filled(&vec![0.1f32; count]);
    bench.launch((&adamw::STEP, 1), args, &[a, b, c, moment.all()]);
    let args = dropout::Args {
        rows: bench.tokens as u32,
        features: HIDDEN as u32,
        probability: 0.1,
        seed_low: 1,
        seed_high: 2,
        step: 3,
        site: 4,
        stride: HIDDEN as u32,
        offset: 0,
    };
    bench.launch((&dropout::APPLY, 0), args, &[a, buffers.rows.all(), b]);
}
