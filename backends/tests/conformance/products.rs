//! Cases of products: with prepared weights, and of two buffers.
//!
//! A sum of k products errs by (k + 2)·u·Σ|terms| in f32, whatever the order. Where activations have 16 bits, so does
//! the weight that enters the product, and its bias; the sum is taken and finished in f32 and rounded once, when it is
//! stored.

use motley_backends::{
    Direction, Epilogue, Linear, Matmul, Operand, SourceDtype, Weight, WeightFormat, WeightPart, WeightSource,
};
use motley_kernels::{Dtype, gelu, nf4};

use super::bounded::{BF16, Bounded, STEP, exact};
use super::device::{Data, Device, GUARD};
use super::random::{Random, scaled};

const FORMATS: [WeightFormat; 3] = [
    WeightFormat::F32,
    WeightFormat::Nf4 { double_quantization: false },
    WeightFormat::Nf4 { double_quantization: true },
];

/// What a product is called in the table.
fn name(format: WeightFormat, direction: Direction) -> &'static str {
    match (format, direction) {
        (WeightFormat::F32, Direction::Forward) => "linear f32 forward",
        (WeightFormat::F32, Direction::Backward) => "linear f32 backward",
        (WeightFormat::Nf4 { double_quantization: false }, Direction::Forward) => "linear nf4 forward",
        (WeightFormat::Nf4 { double_quantization: false }, Direction::Backward) => "linear nf4 backward",
        (WeightFormat::Nf4 { .. }, Direction::Forward) => "linear nf4 double forward",
        (WeightFormat::Nf4 { .. }, Direction::Backward) => "linear nf4 double backward",
    }
}

pub fn cases(device: &mut Device<'_>) {
    let mut random = Random::new(16);
    // rows, out, in
    let mut shapes =
        vec![[0, 8, 8], [1, 1, 1], [3, 5, 7], [13, 33, 64], [17, 70, 100], [64, 96, 128], [2, 40, 516]];
    // Few rows with whole blocks of NF4, and one more than a few.
    shapes.extend([[1, 40, 576], [8, 17, 192], [9, 31, 640], [32, 33, 128], [33, 20, 64]]);
    shapes.extend((0..3).map(|_| [random.size(64), random.size(90), random.size(130)]));
    for (seed, shape) in shapes.into_iter().enumerate() {
        FORMATS.into_iter().for_each(|format| linear(device, shape, format, seed as u64));
    }
    not_a_number(device);
    weights(device);
    for (seed, shape) in
        [[1, 1, 1], [3, 40, 5], [33, 20, 14], [64, 64, 30], [5, 70, 130]].into_iter().enumerate()
    {
        for turned in [[false, false], [true, false], [false, true], [true, true]] {
            matmul(device, shape, turned, seed as u64);
        }
    }
}

pub fn large_cases(device: &mut Device<'_>) {
    for (seed, shape) in [[300, 384, 1536], [129, 1000, 768]].into_iter().enumerate() {
        FORMATS.into_iter().for_each(|format| linear(device, shape, format, 60 + seed as u64));
    }
}

fn prepare(
    device: &Device<'_>,
    values: &[f32],
    shape: [usize; 2],
    bias: Option<&[f32]>,
    format: WeightFormat,
) -> Weight {
    let [out, width] = shape;
    let part = |rows: std::ops::Range<usize>| WeightPart {
        shape: [rows.len(), width],
        bytes: bytemuck::cast_slice(&values[rows.start * width..rows.end * width]),
        dtype: SourceDtype::F32,
    };
    // Parts are quantized each by itself.
    let parts = if out < 16 { vec![part(0..out)] } else { vec![part(0..out / 3), part(out / 3..out)] };
    device.backend.prepare_weight(&WeightSource { parts: &parts, bias, format }).expect("a sound weight")
}

/// One call of `linear` between guards; `before` is what the output holds.
fn call(
    device: &mut Device<'_>,
    weight: &Weight,
    x: &[f32],
    before: &[f32],
    (direction, epilogue, accumulate): (Direction, Epilogue, bool),
) -> Vec<f32> {
    let [out, width] = weight.shape();
    let (from, to) = if direction == Direction::Forward { (width, out) } else { (out, width) };
    let bytes = |values: &[f32]| device.encode(&Data::of(values), Dtype::Activation);
    let (x, before) = (bytes(x), bytes(before));
    let (input, output) = (device.guarded(&x, GUARD), device.guarded(&before, GUARD));
    let element = if device.is_bf16() { 2 } else { 4 };
    assert_eq!(before.len() / element / to * from, x.len() / element);
    let call = Linear {
        input: input.part(GUARD, x.len()),
        weight,
        output: output.part(GUARD, before.len()),
        rows: before.len() / element / to,
        epilogue,
        direction,
        accumulate,
    };
    if let Err(error) = device.backend.linear(&call) {
        device.complain("linear", &error.to_string());
    }
    let whole = device.read(&output);
    let (inside, behind) = whole[GUARD..].split_at(before.len());
    if whole[..GUARD].iter().chain(behind).any(|byte| *byte != whole[0]) {
        device.complain("linear", "wrote outside of its output");
    }
    device.decode(inside, Dtype::Activation)
}

/// left [m, k] · right [k, n] by the elements of both.
fn plain(
    [m, n, k]: [usize; 3],
    left: impl Fn(usize, usize) -> f32,
    right: impl Fn(usize, usize) -> f32,
) -> Vec<Bounded> {
    let mut out = vec![];
    for i in 0..m {
        for j in 0..n {
            let terms = (0..k).map(|t| f64::from(left(i, t)) * f64::from(right(t, j)));
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
            out.push(Bounded::within(sum, (k + 2) as f64 * STEP / 2.0 * size));
        }
    }
    out
}

fn add(terms: &[Bounded], others: &[f32]) -> Vec<Bounded> {
    let others = exact(others).into_iter().cycle();
    terms.iter().zip(others).map(|(term, other)| *term + other).collect()
}

fn linear(device: &mut Device<'_>, [rows, out, width]: [usize; 3], format: WeightFormat, seed: u64) {
    device.case = format!("rows {rows}, out {out}, in {width}, {format:?}, seed {seed}");
    let mut random = Random::new(seed);
    let (values, bias) = (random.numbers(out * width), random.numbers(out));
    let x = device.rounded(random.numbers(rows * width));
    let (y, dy) = (device.rounded(random.numbers(rows * out)), device.rounded(random.numbers(rows * out)));
    let weight = prepare(device, &values, [out, width], Some(&bias), format);
    let stored = device.backend.read_weight(&weight).expect("its own weight");
    let (w, bias) = (device.rounded(stored), device.rounded(bias));
    let nothing = vec![f32::NAN; rows * out.max(width)];
    let entry = name(format, Direction::Forward);
    device.seen.entry(entry).or_default().cases += 1;
    let product = plain([rows, out, width], |i, t| x[i * width + t], |t, j| w[j * width + t]);
    let unwritten = &nothing[..rows * out];
    let got = call(device, &weight, &x, unwritten, (Direction::Forward, Epilogue::None, false));
    device.compare_activations(entry, &got, &product);
    let got = call(device, &weight, &x, unwritten, (Direction::Forward, Epilogue::Bias, false));
    device.compare_activations(entry, &got, &add(&product, &bias));
    for kind in [gelu::Kind::Exact, gelu::Kind::Tanh, gelu::Kind::Relu] {
        let epilogue = Epilogue::BiasActivation(kind);
        let got = call(device, &weight, &x, unwritten, (Direction::Forward, epilogue, false));
        let sum = stored_between(device, add(&product, &bias));
        device.compare_activations(entry, &got, &gelu::reference::forward(&sum, kind));
    }
    let got = call(device, &weight, &x, &y, (Direction::Forward, Epilogue::None, true));
    device.compare_activations(entry, &got, &add(&product, &y));

    let entry = name(format, Direction::Backward);
    device.seen.entry(entry).or_default().cases += 1;
    let product = plain([rows, width, out], |i, t| dy[i * out + t], |t, j| w[t * width + j]);
    let unwritten = &nothing[..rows * width];
    let got = call(device, &weight, &dy, unwritten, (Direction::Backward, Epilogue::None, false));
    device.compare_activations(entry, &got, &product);
    let got = call(device, &weight, &dy, &x, (Direction::Backward, Epilogue::None, true));
    device.compare_activations(entry, &got, &add(&product, &x));
}

/// What an activation is taken of: a device of 16 bits may store it in as many before.
fn stored_between(device: &Device<'_>, sum: Vec<Bounded>) -> Vec<Bounded> {
    let lost = if device.is_bf16() { BF16 } else { 0.0 };
    sum.into_iter().map(|v| Bounded::within(v.value, v.error + lost * (v.value.abs() + v.error))).collect()
}

/// NaN and infinity of one row stay in that row.
fn not_a_number(device: &mut Device<'_>) {
    device.case = "NaN and infinity come through".to_owned();
    let weight = prepare(device, &Random::new(1).numbers(40 * 64), [40, 64], None, WeightFormat::F32);
    let mut x = Random::new(2).numbers(3 * 64);
    x[64] = f32::NAN;
    let got = call(device, &weight, &x, &[0.0; 120], (Direction::Forward, Epilogue::None, false));
    let is_sound = |(i, v): (usize, &f32)| v.is_nan() == (40..80).contains(&i);
    if !got.iter().enumerate().all(is_sound) {
        device.complain("linear", "NaN was lost, or reached another row");
    }
}

/// What a device says its weights are has the bits that the kernel's specification gives, part by part.
fn weights(device: &mut Device<'_>) {
    for width in [128, 100] {
        device.case = format!("read_weight, in {width}");
        let (first, second) =
            (Random::new(3).numbers(40 * width), scaled(Random::new(4).numbers(51 * width), 9.0));
        let parts = [(40, &first), (51, &second)].map(|(out, values)| WeightPart {
            bytes: bytemuck::cast_slice(values),
            shape: [out, width],
            dtype: SourceDtype::F32,
        });
        for format in FORMATS {
            let wanted = |x: &[f32]| {
                let WeightFormat::Nf4 { double_quantization } = format else { return x.to_vec() };
                let (packed, absmax) = nf4::quantize(x);
                let double = || nf4::DoubleQuantized::new(&absmax).absmax();
                let scales = if double_quantization { double() } else { absmax.clone() };
                nf4::dequantize(&packed, &scales, x.len())
            };
            let wanted = [wanted(&first), wanted(&second)].concat();
            let source = WeightSource { parts: &parts, bias: None, format };
            let weight = device.backend.prepare_weight(&source).expect("a sound weight");
            let got = device.backend.read_weight(&weight).expect("its own weight");
            // Where activations have 16 bits, an unquantized weight may be kept in as many.
            let got_and_wanted = match format {
                WeightFormat::F32 => (device.rounded(got), device.rounded(wanted)),
                WeightFormat::Nf4 { .. } => (got, wanted),
            };
            device.compare_bits(name(format, Direction::Forward), &got_and_wanted.0, &got_and_wanted.1);
        }
    }
}

/// All f32, whatever activations are kept in; two of a batch, with three elements between stored rows.
fn matmul(device: &mut Device<'_>, [m, n, k]: [usize; 3], [turn_left, turn_right]: [bool; 2], seed: u64) {
    device.case = format!("m {m}, n {n}, k {k}, transposed {turn_left} {turn_right}, seed {seed}");
    let mut random = Random::new(seed);
    let mut stored = |turned: bool, rows: usize, columns: usize| {
        let (rows, columns) = if turned { (columns, rows) } else { (rows, columns) };
        (random.numbers(2 * rows * (columns + 3)), columns + 3, rows * (columns + 3))
    };
    let (left, left_stride, left_size) = stored(turn_left, m, k);
    let (right, right_stride, right_size) = stored(turn_right, k, n);
    let before = random.numbers(2 * m * (n + 1));
    let buffers = [&left, &right, &before].map(|values| device.guarded(bytemuck::cast_slice(values), GUARD));
    let operand = |i: usize, stride, batch_stride, transposed| Operand {
        view: buffers[i].part(GUARD, [&left, &right, &before][i].len() * 4),
        stride,
        batch_stride,
        transposed,
    };
    let at = |turned, stride: usize, i: usize, j: usize| if turned { j * stride + i } else { i * stride + j };
    for (alpha, beta) in [(0.5, 2.0), (1.0, 0.0)] {
        device.backend.upload(bytemuck::cast_slice(&before), buffers[2].at(GUARD)).expect("upload");
        let call = Matmul {
            left: operand(0, left_stride, left_size, turn_left),
            right: operand(1, right_stride, right_size, turn_right),
            output: operand(2, n + 1, m * (n + 1), false),
            shape: [m, n, k],
            batch: 2,
            alpha,
            beta,
        };
        if let Err(error) = device.backend.matmul(&call) {
            device.complain("matmul", &error.to_string());
        }
        device.seen.entry("matmul").or_default().cases += 1;
        let whole = device.read(&buffers[2]);
        let got: &[f32] = bytemuck::cast_slice(&whole[GUARD..GUARD + before.len() * 4]);
        for b in 0..2 {
            let left = |i, t| left[b * left_size + at(turn_left, left_stride, i, t)];
            let right = |t, j| right[b * right_size + at(turn_right, right_stride, t, j)];
            let factors = exact(&[alpha, beta]);
            for (index, product) in plain([m, n, k], left, right).into_iter().enumerate() {
                let place = (b * m + index / n) * (n + 1) + index % n;
                let wanted = factors[0] * product + factors[1] * Bounded::exact(before[place]);
                device.compare("matmul", &got[place..=place], &[wanted]);
            }
        }
        let beside = |values: &[f32]| values.iter().skip(n).step_by(n + 1).copied().collect::<Vec<_>>();
        device.compare_bits("matmul", &beside(got), &beside(&before));
    }
}
