//! Measures products with prepared weights: GFLOP/s and the share of the processor's multiply-add peak, which is
//! measured in the same run. `cargo run --release -p motley-backends --example products [threads]`

#![allow(clippy::print_stdout)] // the table is what it is for

use std::time::Instant;

use motley_backends::{
    Backend, Category, DeviceRequest, Direction, Epilogue, Linear, SourceDtype, WeightFormat, WeightPart,
    WeightSource, open,
};
use motley_kernels::gelu;
use motley_kernels::simd::{LANES, multiply_add};

const ROWS: [usize; 4] = [14, 128, 896, 2048];
const SHAPES: [[usize; 2]; 4] = [[384, 384], [1536, 384], [384, 1536], [1152, 384]];

fn main() {
    let threads: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let threads = if threads.is_empty() { vec![1, 2] } else { threads };
    for threads in threads {
        let request =
            DeviceRequest { backend: "cpu".to_owned(), threads: Some(threads), ..Default::default() };
        let backend = open(&request).expect("the CPU is always there");
        println!("threads {threads}  {}", backend.info().numerics_class);
        let double = WeightFormat::Nf4 { double_quantization: true };
        let kinds = [
            ("forward", WeightFormat::F32, Direction::Forward, Epilogue::Bias),
            ("+gelu", WeightFormat::F32, Direction::Forward, Epilogue::BiasActivation(gelu::Kind::Exact)),
            ("backward", WeightFormat::F32, Direction::Backward, Epilogue::None),
            ("nf4", double, Direction::Forward, Epilogue::Bias),
            ("nf4 back", double, Direction::Backward, Epilogue::None),
        ];
        for (name, format, direction, epilogue) in kinds {
            for [out, width] in SHAPES {
                print!("{name:9} {out:5} x {width:5}:");
                for rows in ROWS {
                    let (rate, share) = measure(&*backend, [rows, out, width], (format, direction, epilogue));
                    print!("   {rows:5} rows {rate:6.1} ({:3.0} %)", share * 100.0);
                }
                println!();
            }
        }
    }
}

fn measure(
    backend: &dyn Backend,
    [rows, out, width]: [usize; 3],
    (format, direction, epilogue): (WeightFormat, Direction, Epilogue),
) -> (f64, f64) {
    let values: Vec<f32> = (0..out * width).map(|i| (i % 1000) as f32 / 1000.0 - 0.5).collect();
    let parts =
        [WeightPart { bytes: bytemuck::cast_slice(&values), shape: [out, width], dtype: SourceDtype::F32 }];
    let bias = vec![0.5; out];
    let source = WeightSource { parts: &parts, bias: Some(&bias), format };
    let weight = backend.prepare_weight(&source).expect("a sound weight");
    let buffer = || backend.allocate(rows * out.max(width) * 4, Category::Activations).expect("memory");
    let (input, output) = (buffer(), buffer());
    let flops = 2.0 * (rows * out * width) as f64;
    // The best single call: what the code can do when nobody else takes the processor.
    let calls = ((2e9 / flops) as usize).clamp(20, 1000);
    let mut best = f64::INFINITY;
    backend.run_in_pool(&mut || {
        for _ in 0..calls {
            let call = Linear {
                input: input.all(),
                weight: &weight,
                output: output.all(),
                rows,
                epilogue,
                direction,
                accumulate: false,
            };
            let start = Instant::now();
            backend.linear(&call).expect("a sound call");
            best = best.min(start.elapsed().as_secs_f64());
        }
    });
    let rate = flops / best / 1e9;
    (rate, rate / multiply_add_peak(backend.info().threads))
}

/// GFLOP/s of independent multiply-adds in registers: the best of many short rounds on one thread, times threads.
fn multiply_add_peak(threads: usize) -> f64 {
    const STEPS: usize = 10_000;
    let mut best = f64::INFINITY;
    for _ in 0..100 {
        let start = Instant::now();
        std::hint::black_box(spin(STEPS));
        best = best.min(start.elapsed().as_secs_f64());
    }
    (threads * STEPS * CHAINS * LANES * 2) as f64 / best / 1e9
}

/// Independent sums: more than the latency of a multiply-add times its rate.
const CHAINS: usize = 10;

motley_kernels::multiversion! {
    fn spin(steps: usize) -> f32 {
        let mut sums = [[1.0f32; LANES]; CHAINS];
        let factor = std::hint::black_box([0.999f32; LANES]);
        for _ in 0..steps {
            for chain in 0..CHAINS {
                for lane in 0..LANES {
                    sums[chain][lane] = multiply_add::<FMA>(sums[chain][lane], factor[lane], factor[lane]);
                }
            }
        }
        sums.iter().flatten().sum()
    }
}
