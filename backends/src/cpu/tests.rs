//! Products of the CPU against plain loops, their invariances, and refusals.

use motley_kernels::{gelu, nf4};

use super::*;
use crate::product::Operand;
use crate::weight::{SourceDtype, WeightFormat, WeightPart};

const DOUBLE: WeightFormat = WeightFormat::Nf4 { double_quantization: true };
const SINGLE: WeightFormat = WeightFormat::Nf4 { double_quantization: false };

fn cpu(threads: usize) -> Cpu {
    Cpu::new(&DeviceRequest { threads: Some(threads), ..DeviceRequest::default() }).unwrap()
}

/// Values in [−1, 1), seeded.
fn random(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn upload(cpu: &Cpu, values: &[f32]) -> Buffer {
    let buffer = cpu.allocate(values.len() * 4, Category::Activations).unwrap();
    cpu.upload(bytemuck::cast_slice(values), buffer.all()).unwrap();
    buffer
}

fn download(cpu: &Cpu, buffer: &Buffer) -> Vec<f32> {
    let mut values = vec![0.0f32; buffer.bytes() / 4];
    cpu.download(buffer.all(), bytemuck::cast_slice_mut(&mut values)).unwrap();
    values
}

fn weight(
    cpu: &Cpu,
    values: &[f32],
    [out, width]: [usize; 2],
    format: WeightFormat,
    bias: Option<&[f32]>,
) -> Weight {
    let bytes = bytemuck::cast_slice(values);
    let parts = [WeightPart { bytes, shape: [out, width], dtype: SourceDtype::F32 }];
    cpu.prepare_weight(&WeightSource { parts: &parts, bias, format }).unwrap()
}

fn linear(cpu: &Cpu, weight: &Weight, x: &[f32], direction: Direction, epilogue: Epilogue) -> Vec<f32> {
    let [out, width] = weight.shape();
    let (from, to) = if direction == Direction::Forward { (width, out) } else { (out, width) };
    let rows = x.len() / from;
    let (input, output) = (upload(cpu, x), upload(cpu, &vec![f32::NAN; rows * to]));
    let call = Linear {
        input: input.all(),
        weight,
        output: output.all(),
        rows,
        epilogue,
        direction,
        accumulate: false,
    };
    cpu.linear(&call).unwrap();
    download(cpu, &output)
}

/// left [m, k] · right [k, n] in f64, with Σ|left·right| for the bound.
fn plain(left: &[f32], right: impl Fn(usize, usize) -> f32, [m, n, k]: [usize; 3]) -> Vec<(f64, f64)> {
    let mut out = vec![];
    for i in 0..m {
        for j in 0..n {
            let terms = (0..k).map(|t| f64::from(left[i * k + t]) * f64::from(right(t, j)));
            out.push(terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs())));
        }
    }
    out
}

/// The rounding of k sequential fused additions: at most k·2⁻²⁴ of the sum of magnitudes.
#[track_caller]
fn assert_product(got: &[f32], wanted: &[(f64, f64)], depth: usize) {
    assert_eq!(got.len(), wanted.len());
    for (i, (got, (sum, size))) in got.iter().zip(wanted).enumerate() {
        let bound = (depth + 2) as f64 * 2f64.powi(-24) * size;
        assert!((f64::from(*got) - sum).abs() <= bound, "element {i}: {got}, wanted {sum}, bound {bound}");
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

const SHAPES: [[usize; 3]; 8] = [
    [1, 1, 1],
    [3, 5, 7],
    [13, 33, 64],
    [14, 32, 128],
    [15, 96, 100],
    [97, 384, 384],
    [200, 70, 192],
    [5, 130, 1536],
];

#[test]
fn products_agree_with_plain_loops_in_both_directions_and_all_formats() {
    let cpu = cpu(2);
    for [rows, out, width] in SHAPES {
        let values = random(out * width, 1);
        let (x, dy) = (random(rows * width, 2), random(rows * out, 3));
        for format in [WeightFormat::F32, SINGLE, DOUBLE] {
            let weight = weight(&cpu, &values, [out, width], format, None);
            let w = cpu.read_weight(&weight).unwrap();
            if format == WeightFormat::F32 {
                assert_eq!(w, values);
            }
            let got = linear(&cpu, &weight, &x, Direction::Forward, Epilogue::None);
            assert_product(&got, &plain(&x, |t, j| w[j * width + t], [rows, out, width]), width);
            let got = linear(&cpu, &weight, &dy, Direction::Backward, Epilogue::None);
            assert_product(&got, &plain(&dy, |t, j| w[t * width + j], [rows, width, out]), out);
        }
    }
}

#[test]
fn nf4_weights_are_what_the_kernel_says_part_by_part() {
    let cpu = cpu(2);
    for width in [128, 100] {
        let (first, second) = (random(40 * width, 1), random(50 * width, 2));
        for double in [false, true] {
            let quantized = |x: &[f32]| {
                let (packed, absmax) = nf4::quantize(x);
                let absmax = if double { nf4::DoubleQuantized::new(&absmax).absmax() } else { absmax };
                nf4::dequantize(&packed, &absmax, x.len())
            };
            let parts = [(40, &first), (50, &second)].map(|(out, values)| WeightPart {
                bytes: bytemuck::cast_slice(values),
                shape: [out, width],
                dtype: SourceDtype::F32,
            });
            let format = WeightFormat::Nf4 { double_quantization: double };
            let weight = cpu.prepare_weight(&WeightSource { parts: &parts, bias: None, format }).unwrap();
            let wanted = [quantized(&first), quantized(&second)].concat();
            assert_eq!(bits(&cpu.read_weight(&weight).unwrap()), bits(&wanted));
        }
    }
}

#[test]
fn half_precision_sources_are_widened() {
    let cpu = cpu(1);
    let values = [1.5f32, -2.0, 0.25, 3.0];
    let f16: Vec<u8> = values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
    let bf16: Vec<u8> = values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
    for (bytes, dtype) in [(&f16, SourceDtype::F16), (&bf16, SourceDtype::Bf16)] {
        let parts = [WeightPart { bytes, shape: [2, 2], dtype }];
        let source = WeightSource { parts: &parts, bias: None, format: WeightFormat::F32 };
        assert_eq!(cpu.read_weight(&cpu.prepare_weight(&source).unwrap()).unwrap(), values);
    }
}

#[test]
fn values_that_are_not_finite_are_refused_where_they_would_be_quantized() {
    let cpu = cpu(1);
    for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let (sound, mut values) = (random(3 * 64, 1), random(3 * 64, 2));
        values[70] = broken;
        let part = |values| WeightPart {
            bytes: bytemuck::cast_slice(values),
            shape: [3, 64],
            dtype: SourceDtype::F32,
        };
        let parts = [part(&sound), part(&values)];
        for format in [SINGLE, DOUBLE] {
            let refused = cpu.prepare_weight(&WeightSource { parts: &parts, bias: None, format });
            assert!(matches!(refused, Err(Error::NonFinite { part: 1, element: 70, .. })), "{refused:?}");
            assert_eq!(cpu.memory().live, 0, "a refused weight is not counted");
        }
        let source = WeightSource { parts: &parts, bias: None, format: WeightFormat::F32 };
        assert!(cpu.prepare_weight(&source).is_ok(), "as f32 it is what it is");
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_batch_and_with_any_threads() {
    let (out, width) = (384, 192);
    let (values, bias, x) = (random(out * width, 1), random(out, 2), random(97 * width, 3));
    let epilogue = Epilogue::BiasActivation(gelu::Kind::Exact);
    for format in [WeightFormat::F32, DOUBLE] {
        let mut seen: Option<Vec<u32>> = None;
        for threads in [1, 2, 3] {
            let cpu = cpu(threads);
            let weight = weight(&cpu, &values, [out, width], format, Some(&bias));
            let all = bits(&linear(&cpu, &weight, &x, Direction::Forward, epilogue));
            for rows in [1, 2, 13, 14, 15, 60] {
                let part = linear(&cpu, &weight, &x[..rows * width], Direction::Forward, epilogue);
                assert_eq!(bits(&part), all[..rows * out], "{rows} rows, {threads} threads");
            }
            let last = linear(&cpu, &weight, &x[96 * width..], Direction::Forward, epilogue);
            assert_eq!(bits(&last), all[96 * out..]);
            assert_eq!(*seen.get_or_insert_with(|| all.clone()), all, "{threads} threads");
        }
    }
}

#[test]
fn epilogues_are_bias_then_activation_and_accumulation_adds() {
    let cpu = cpu(2);
    let (rows, out, width) = (17, 50, 64);
    let (values, bias, x) = (random(out * width, 1), random(out, 2), random(rows * width, 3));
    let weight = weight(&cpu, &values, [out, width], WeightFormat::F32, Some(&bias));
    let plain = linear(&cpu, &weight, &x, Direction::Forward, Epilogue::None);
    let biased: Vec<f32> = plain.iter().enumerate().map(|(i, v)| v + bias[i % out]).collect();
    assert_eq!(linear(&cpu, &weight, &x, Direction::Forward, Epilogue::Bias), biased);
    let mut active = biased.clone();
    gelu::in_place(&mut active, gelu::Kind::Exact as u32);
    let epilogue = Epilogue::BiasActivation(gelu::Kind::Exact);
    assert_eq!(bits(&linear(&cpu, &weight, &x, Direction::Forward, epilogue)), bits(&active));
    let (input, output) = (upload(&cpu, &x), upload(&cpu, &biased));
    let call = Linear {
        input: input.all(),
        weight: &weight,
        output: output.all(),
        rows,
        epilogue: Epilogue::None,
        direction: Direction::Forward,
        accumulate: true,
    };
    cpu.linear(&call).unwrap();
    let sum: Vec<f32> = plain.iter().zip(&biased).map(|(a, b)| a + b).collect();
    assert_eq!(download(&cpu, &output), sum);
}

#[test]
fn nan_and_infinity_come_through() {
    let cpu = cpu(1);
    let weight = weight(&cpu, &random(40 * 64, 1), [40, 64], WeightFormat::F32, None);
    let mut x = random(3 * 64, 2);
    x[64] = f32::NAN;
    let got = linear(&cpu, &weight, &x, Direction::Forward, Epilogue::None);
    assert!(got[40..80].iter().all(|v| v.is_nan()));
    assert!(got[..40].iter().chain(&got[80..]).all(|v| v.is_finite()));
}

#[test]
fn matmul_takes_transposes_strides_batches_alpha_and_beta() {
    let cpu = cpu(2);
    for (i, [m, n, k]) in [[1, 1, 1], [3, 40, 5], [33, 20, 14], [64, 64, 30]].into_iter().enumerate() {
        for (turn_left, turn_right) in [(false, false), (true, false), (false, true), (true, true)] {
            let stored = |turned: bool, [rows, columns]: [usize; 2], seed| {
                let [rows, columns] = if turned { [columns, rows] } else { [rows, columns] };
                let stride = columns + 3;
                (random(2 * rows * stride, seed), stride, rows * stride)
            };
            let (left, left_stride, left_size) = stored(turn_left, [m, k], i as u32);
            let (right, right_stride, right_size) = stored(turn_right, [k, n], 50 + i as u32);
            let before = random(2 * m * (n + 1), 9);
            let buffers = [upload(&cpu, &left), upload(&cpu, &right), upload(&cpu, &before)];
            let operand = |i: usize, stride, batch_stride, transposed| Operand {
                view: buffers[i].all(),
                stride,
                batch_stride,
                transposed,
            };
            let call = Matmul {
                left: operand(0, left_stride, left_size, turn_left),
                right: operand(1, right_stride, right_size, turn_right),
                output: operand(2, n + 1, m * (n + 1), false),
                shape: [m, n, k],
                batch: 2,
                alpha: 0.5,
                beta: 2.0,
            };
            cpu.matmul(&call).unwrap();
            let got = download(&cpu, &buffers[2]);
            for (index, (got, before)) in got.iter().zip(&before).enumerate() {
                let (b, row, column) = (index / (m * (n + 1)), index / (n + 1) % m, index % (n + 1));
                if column == n {
                    assert_eq!(got, before, "between rows nothing is touched");
                    continue;
                }
                let at = |turned, stride: usize, i: usize, j: usize| {
                    if turned { j * stride + i } else { i * stride + j }
                };
                let term = |t| {
                    let l = left[b * left_size + at(turn_left, left_stride, row, t)];
                    let r = right[b * right_size + at(turn_right, right_stride, t, column)];
                    f64::from(l) * f64::from(r)
                };
                let wanted = 0.5 * (0..k).map(term).sum::<f64>() + 2.0 * f64::from(*before);
                assert!((f64::from(*got) - wanted).abs() < 1e-5, "{got} {wanted}");
            }
        }
    }
}

#[test]
fn matrices_that_overlap_or_overflow_are_refused() {
    let cpu = cpu(1);
    let buffers = [upload(&cpu, &[1.0; 64]), upload(&cpu, &[1.0; 64]), upload(&cpu, &[0.0; 64])];
    let product = |left_stride, batch_stride, output_stride| {
        let call = Matmul {
            left: Operand { batch_stride, ..Operand::rows(buffers[0].all(), left_stride) },
            right: Operand::rows(buffers[1].all(), 4),
            output: Operand::rows(buffers[2].all(), output_stride),
            shape: [3, 4, 2],
            batch: 2,
            alpha: 1.0,
            beta: 0.0,
        };
        cpu.matmul(&call)
    };
    assert!(product(2, 0, 4).is_ok());
    assert!(matches!(product(2, 0, 3), Err(Error::Launch { wanted: 4, given: 3, .. })));
    for (left_stride, batch_stride) in [(usize::MAX / 2 + 1, 0), (2, usize::MAX), (usize::MAX / 4, 2)] {
        assert!(matches!(product(left_stride, batch_stride, 4), Err(Error::OutOfBounds { .. })));
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let cpu = cpu(1);
    let weight = weight(&cpu, &random(8 * 4, 1), [8, 4], WeightFormat::F32, None);
    let (input, output) = (upload(&cpu, &[0.0; 8]), upload(&cpu, &[0.0; 15]));
    let call = |rows, output| Linear {
        input: input.all(),
        weight: &weight,
        output,
        rows,
        epilogue: Epilogue::None,
        direction: Direction::Forward,
        accumulate: false,
    };
    assert!(matches!(cpu.linear(&call(2, output.all())), Err(Error::OutOfBounds { .. })));
    assert!(cpu.linear(&call(1, output.at(4))).is_ok());
    assert!(cpu.linear(&call(0, output.all())).is_ok());
    let null = crate::null::Null::new(&DeviceRequest::default());
    let foreign = null.allocate(64, Category::Activations).unwrap();
    assert!(matches!(cpu.linear(&call(1, foreign.all())), Err(Error::Foreign { .. })));
    let args = motley_kernels::elementwise::Args { count: 4, alpha: 1.0 };
    let add = &motley_kernels::elementwise::ADD;
    let launch = |buffers: [View<'_>; 2], count| cpu.launch(&Launch::new(add, &args, &buffers[..count]));
    assert!(matches!(launch([input.all(), input.all()], 1), Err(Error::Launch { wanted: 2, given: 1, .. })));
    assert!(matches!(launch([input.all(), input.all()], 2), Err(Error::Overlap { .. })));
    assert!(launch([input.part(0, 16), input.part(16, 16)], 2).is_ok());
    let limited = Cpu::new(&DeviceRequest { memory_limit: Some(100), ..DeviceRequest::default() }).unwrap();
    assert!(matches!(limited.allocate(101, Category::Workspace), Err(Error::OutOfMemory { free: 100, .. })));
}

/// The tests of this crate again with each lesser instruction set: a level is chosen once a process.
#[test]
fn every_instruction_set_of_this_processor_passes_all_tests() {
    use motley_kernels::simd::{LEVEL_VARIABLE, Level, level};

    if let Ok(name) = std::env::var(LEVEL_VARIABLE) {
        let class = cpu(1).info().numerics_class.clone();
        assert!(class.ends_with(&name), "{class} is not {name}");
        return;
    }
    let lesser: &[Level] = match level() {
        Level::Avx512 => &[Level::Avx2, Level::Portable],
        Level::Avx2 => &[Level::Portable],
        Level::Portable => &[],
    };
    for level in lesser {
        let mut tests = std::process::Command::new(std::env::current_exe().unwrap());
        let output = tests.env(LEVEL_VARIABLE, level.name()).output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}:\n{told}", level.name());
        assert!(told.contains("every_instruction_set_of_this_processor_passes_all_tests ... ok"), "{told}");
    }
}
