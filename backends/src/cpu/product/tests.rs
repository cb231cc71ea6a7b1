//! Products against plain loops in f64; the same bits alone, in a batch, and with any number of threads; NF4 against
//! its dequantized self.

use crate::cpu::Cpu;
use crate::*;

fn cpu(threads: usize) -> Cpu {
    Cpu::new(&DeviceRequest { kind: DeviceKind::Cpu, threads: Some(threads), memory_bytes_max: None })
        .unwrap()
}

fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32) / (1u32 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn put(backend: &dyn Backend, values: &[f32]) -> Buffer {
    let buffer = backend.allocate(values.len() * 4, Category::Activations).unwrap();
    backend.upload(bytemuck::cast_slice(values), (&buffer).into()).unwrap();
    buffer
}

fn get(backend: &dyn Backend, buffer: &Buffer, count: usize) -> Vec<f32> {
    let mut values = vec![0.0; count];
    backend.download(buffer.into(), bytemuck::cast_slice_mut(&mut values)).unwrap();
    values
}

fn prepare(
    backend: &dyn Backend,
    w: &[f32],
    shape: [usize; 2],
    format: WeightFormat,
    bias: &[f32],
) -> Weight {
    // Two parts, so that stacking is exercised.
    let first = shape[0] / 2;
    let (upper, lower) = w.split_at(first * shape[1]);
    let part = |values, rows| WeightPart {
        bytes: bytemuck::cast_slice(values),
        shape: [rows, shape[1]],
        dtype: WeightDtype::F32,
    };
    let parts = [part(upper, first), part(lower, shape[0] - first)];
    backend.prepare_weight(&WeightSource { parts: &parts, format, bias: Some(bias) }).unwrap()
}

fn linear(
    backend: &dyn Backend,
    weight: &Weight,
    x: &[f32],
    rows: usize,
    (direction, epilogue): (Direction, Epilogue),
) -> Vec<f32> {
    let width = if direction == Direction::Forward { weight.shape()[0] } else { weight.shape()[1] };
    let (input, output) = (put(backend, x), put(backend, &vec![f32::NAN; rows * width]));
    let (input, place) = ((&input).into(), (&output).into());
    let call = Linear { weight, direction, rows, input, output: place, epilogue, accumulate: false };
    backend.linear(&call).unwrap();
    get(backend, &output, rows * width)
}

fn plain(x: &[f32], w: &[f32], [out, inner]: [usize; 2], forward: bool) -> Vec<f64> {
    let k = if forward { inner } else { out };
    let columns = if forward { out } else { inner };
    let weight = |p: usize, c: usize| f64::from(if forward { w[c * inner + p] } else { w[p * inner + c] });
    x.chunks(k)
        .flat_map(|x| (0..columns).map(move |c| (0..k).map(|p| f64::from(x[p]) * weight(p, c)).sum()))
        .collect()
}

fn assert_near(got: &[f32], wanted: &[f64], k: usize) {
    assert_eq!(got.len(), wanted.len());
    for (g, w) in got.iter().zip(wanted) {
        // Terms are below 1; rounding errors of k additions of sums up to √k grow no faster than this.
        assert!((f64::from(*g) - w).abs() <= 1e-6 * (k as f64).max(1.0).sqrt() * 4.0, "{g} {w}");
    }
}

#[test]
fn products_agree_with_plain_loops_in_both_directions_and_formats() {
    let backend = cpu(2);
    for (rows, out, inner) in [(1, 2, 1), (3, 33, 7), (14, 96, 64), (40, 70, 130), (13, 64, 192)] {
        let (w, bias) = (random(out * inner, 1), random(out, 2));
        for format in [
            WeightFormat::F32,
            WeightFormat::Nf4 { double_quantization: false },
            WeightFormat::Nf4 { double_quantization: true },
        ] {
            let weight = prepare(&backend, &w, [out, inner], format, &bias);
            let values = backend.read_weight(&weight).unwrap();
            if format == WeightFormat::F32 {
                assert_eq!(values, w);
            }
            let x = random(rows * inner, 3);
            let got = linear(&backend, &weight, &x, rows, (Direction::Forward, Epilogue::Bias));
            let wanted = plain(&x, &values, [out, inner], true);
            let with_bias: Vec<f64> =
                wanted.iter().enumerate().map(|(i, v)| v + f64::from(bias[i % out])).collect();
            assert_near(&got, &with_bias, inner);
            let dy = random(rows * out, 4);
            let got = linear(&backend, &weight, &dy, rows, (Direction::Backward, Epilogue::None));
            assert_near(&got, &plain(&dy, &values, [out, inner], false), out);
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_in_a_batch_and_on_any_number_of_threads() {
    let (out, inner, rows) = (96, 130, 97);
    let (w, bias, x) = (random(out * inner, 5), random(out, 6), random(rows * inner, 7));
    for format in [WeightFormat::F32, WeightFormat::Nf4 { double_quantization: true }] {
        let run = |threads, x: &[f32], rows| {
            let backend = cpu(threads);
            let weight = prepare(&backend, &w, [out, inner], format, &bias);
            let epilogue = Epilogue::BiasGelu(motley_kernels::gelu::Kind::Exact);
            linear(&backend, &weight, x, rows, (Direction::Forward, epilogue))
        };
        let all = run(1, &x, rows);
        assert_eq!(run(3, &x, rows), all);
        for (first, count) in [(0, 1), (5, 13), (96, 1), (50, 40)] {
            let part = run(2, &x[first * inner..(first + count) * inner], count);
            assert_eq!(part, all[first * out..(first + count) * out]);
        }
    }
}

#[test]
fn buffers_multiply_with_transposes_and_factors() {
    let backend = cpu(2);
    let (m, n, k) = (13, 37, 21);
    let (a, b, c) = (random(m * k, 8), random(n * k, 9), random(m * n, 10));
    for (a_transposed, b_transposed) in [(false, false), (true, false), (false, true), (true, true)] {
        let (pa, pb, pc) = (put(&backend, &a), put(&backend, &b), put(&backend, &c));
        let call = Matmul {
            m,
            n,
            k,
            a: (&pa).into(),
            a_transposed,
            b: (&pb).into(),
            b_transposed,
            c: (&pc).into(),
            alpha: 0.5,
            beta: 2.0,
        };
        backend.matmul(&call).unwrap();
        let at = |i: usize, p: usize| f64::from(if a_transposed { a[p * m + i] } else { a[i * k + p] });
        let bt = |p: usize, j: usize| f64::from(if b_transposed { b[j * k + p] } else { b[p * n + j] });
        let mut wanted = vec![];
        for i in 0..m {
            for j in 0..n {
                let sum: f64 = (0..k).map(|p| at(i, p) * bt(p, j)).sum();
                wanted.push(0.5 * sum + 2.0 * f64::from(c[i * n + j]));
            }
        }
        assert_near(&get(&backend, &pc, m * n), &wanted, k);
    }
}

#[test]
fn wrong_calls_are_refused() {
    let backend = cpu(1);
    let weight = prepare(&backend, &random(64, 1), [8, 8], WeightFormat::F32, &random(8, 2));
    let (small, big) = (put(&backend, &[0.0; 8]), put(&backend, &[0.0; 64]));
    let call = |input, output| Linear {
        weight: &weight,
        direction: Direction::Forward,
        rows: 2,
        input,
        output,
        epilogue: Epilogue::None,
        accumulate: false,
    };
    let error = backend.linear(&call((&small).into(), (&big).into())).unwrap_err();
    assert!(matches!(error, Error::OutOfBounds { .. }), "{error}");
    assert!(backend.linear(&call((&big).into(), (&big).into())).is_err());
    let bytes = [0u8; 4];
    let part = WeightPart { bytes: &bytes, shape: [2, 2], dtype: WeightDtype::F32 };
    let source = WeightSource { parts: &[part], format: WeightFormat::F32, bias: None };
    assert!(matches!(backend.prepare_weight(&source), Err(Error::WeightShape { .. })));
    let limited =
        Cpu::new(&DeviceRequest { memory_bytes_max: Some(10_000), ..DeviceRequest::new(DeviceKind::Cpu) });
    let error = limited.unwrap().allocate(1 << 20, Category::Activations).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
}
