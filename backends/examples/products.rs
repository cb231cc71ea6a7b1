//! Speed of products on this machine, as GFLOP/s and as a share of the fused multiply-add peak measured in the same
//! run: `cargo run --release -p motley-backends --example products [threads]`.

use std::time::Instant;

use motley_backends::{
    Backend, Category, DeviceKind, DeviceRequest, Direction, Epilogue, Linear, WeightDtype, WeightFormat,
    WeightPart, WeightSource, open,
};

fn main() -> Result<(), motley_backends::Error> {
    let threads = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1);
    let backend = open(&DeviceRequest { threads: Some(threads), ..DeviceRequest::new(DeviceKind::Cpu) })?;
    eprintln!("{}", backend.info().name);
    // A block that stays in the first-level cache shows what the processor can do.
    let peak = measure(&*backend, (12 * threads * 32, 32, 256), WeightFormat::F32, Direction::Forward)?;
    eprintln!("small blocks: {peak:.0} GFLOP/s");
    for (out, input) in [(384, 384), (1536, 384), (384, 1536), (1152, 384)] {
        for rows in [1, 14, 128, 896, 2048] {
            let mut line = format!("{rows:5} x {input:4} -> {out:4}:");
            for (format, name) in
                [(WeightFormat::F32, "f32"), (WeightFormat::Nf4 { double_quantization: true }, "nf4")]
            {
                for direction in [Direction::Forward, Direction::Backward] {
                    let speed = measure(&*backend, (rows, out, input), format, direction)?;
                    line += &format!("  {name} {direction:?} {speed:5.0}");
                }
            }
            eprintln!("{line}");
        }
    }
    Ok(())
}

fn measure(
    backend: &dyn Backend,
    (rows, out, input): (usize, usize, usize),
    format: WeightFormat,
    direction: Direction,
) -> Result<f64, motley_backends::Error> {
    let values: Vec<f32> = (0..out * input).map(|i| ((i * 7919) % 1000) as f32 * 1e-3 - 0.5).collect();
    let part =
        WeightPart { bytes: bytemuck::cast_slice(&values), shape: [out, input], dtype: WeightDtype::F32 };
    let weight = backend.prepare_weight(&WeightSource { parts: &[part], format, bias: None })?;
    let (from, to) = if direction == Direction::Forward { (input, out) } else { (out, input) };
    let source = backend.allocate(rows * from * 4, Category::Activations)?;
    let target = backend.allocate(rows * to * 4, Category::Activations)?;
    backend.upload(&vec![0; rows * from * 4], (&source).into())?;
    let call = Linear {
        weight: &weight,
        direction,
        rows,
        input: (&source).into(),
        output: (&target).into(),
        epilogue: Epilogue::None,
        accumulate: false,
    };
    backend.linear(&call)?;
    let flop = 2.0 * (rows * out * input) as f64;
    let runs = (2e9 / flop).ceil().clamp(3.0, 2000.0) as usize;
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let mut seconds = 0.0;
        backend.run_in_pool(&mut || {
            let start = Instant::now();
            for _ in 0..runs {
                backend.linear(&call).expect("the same call succeeded just before");
            }
            seconds = start.elapsed().as_secs_f64() / runs as f64;
        });
        best = f64::min(best, seconds);
    }
    Ok(flop / best / 1e9)
}
