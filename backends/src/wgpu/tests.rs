//! What is the wgpu backend's own: both ways to multiply, pieces of weights, views that WebGPU does not take, counted
//! memory, and failures that become errors. That kernels are right, the conformance suite shows.

mod quantized;
mod software;

use motley_kernels::{attention, elementwise, gelu, normalize};

use super::pipeline::Function;
use super::right::Format;
use super::*;
use crate::product::{self as factor, Direction, Epilogue};
use crate::weight::{SourceDtype, WeightFormat, WeightPart};

const FORMATS: [WeightFormat; 3] = [
    WeightFormat::F32,
    WeightFormat::Nf4 { double_quantization: false },
    WeightFormat::Nf4 { double_quantization: true },
];

const FORMATS_READ: [Format; 6] =
    [Format::F32, Format::Bf16, Format::F16Bits, Format::F16, Format::Nf4, Format::DoubleNf4];

/// The device, or its absence said aloud. `change` lowers limits.
fn opened_with(request: &DeviceRequest, change: impl FnOnce(&mut Gpu)) -> Option<Wgpu> {
    let mut gpu = match Gpu::open(0) {
        Ok(gpu) => gpu,
        Err(error) => {
            let text = format!("skipped: wgpu: {error}\n");
            let _unsaid = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
            return None;
        }
    };
    change(&mut gpu);
    Some(Wgpu::on(gpu, request).unwrap())
}

fn opened() -> Option<Wgpu> {
    opened_with(&DeviceRequest::default(), |_| ())
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

fn uploaded(wgpu: &Wgpu, values: &[f32]) -> Buffer {
    let buffer = wgpu.allocate(values.len() * 4, Category::Activations).unwrap();
    wgpu.upload(bytemuck::cast_slice(values), buffer.all()).unwrap();
    buffer
}

fn downloaded(wgpu: &Wgpu, buffer: &Buffer) -> Vec<f32> {
    let mut values = vec![0.0f32; buffer.bytes() / 4];
    wgpu.download(buffer.all(), bytemuck::cast_slice_mut(&mut values)).unwrap();
    values
}

fn weight(backend: &dyn Backend, values: &[f32], shape: [usize; 2], format: WeightFormat) -> Weight {
    let bias = random(shape[0], 9);
    let (first, second) = (shape[0] / 3, shape[0] - shape[0] / 3);
    let (a, b) = values.split_at(first * shape[1]);
    let part = |values, out| WeightPart {
        bytes: bytemuck::cast_slice::<f32, u8>(values),
        shape: [out, shape[1]],
        dtype: SourceDtype::F32,
    };
    let parts = [part(a, first), part(b, second)];
    backend.prepare_weight(&WeightSource { parts: &parts, bias: Some(&bias), format }).unwrap()
}

fn linear(wgpu: &Wgpu, weight: &Weight, x: &[f32], direction: Direction, epilogue: Epilogue) -> Vec<f32> {
    let [out, width] = weight.shape();
    let (from, to) = if direction == Direction::Forward { (width, out) } else { (out, width) };
    let rows = x.len() / from;
    let (input, output) = (uploaded(wgpu, x), uploaded(wgpu, &vec![f32::NAN; rows * to]));
    let (input, output) = (input.all(), output.all());
    let call = Linear { input, weight, output, rows, epilogue, direction, accumulate: false };
    wgpu.linear(&call).unwrap();
    downloaded(wgpu, output.buffer)
}

/// left [m, k] · right in f64, with the bound of k sequential additions.
#[track_caller]
fn assert_product(got: &[f32], left: &[f32], right: impl Fn(usize, usize) -> f32, [m, n, k]: [usize; 3]) {
    assert_eq!(got.len(), m * n);
    for (place, got) in got.iter().enumerate() {
        let terms = (0..k).map(|t| f64::from(left[place / n * k + t]) * f64::from(right(t, place % n)));
        let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
        let bound = (k + 2) as f64 * 2f64.powi(-24) * size;
        assert!(
            (f64::from(*got) - sum).abs() <= bound,
            "element {place}: {got}, wanted {sum}, bound {bound}"
        );
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn both_ways_multiply_weights_whole_and_in_pieces() {
    let [rows, out, width] = [70, 150, 200];
    let values = random(out * width, 1);
    let (x, dy) = (random(rows * width, 2), random(rows * out, 3));
    let cpu = crate::cpu::Cpu::new(&DeviceRequest::default()).unwrap();
    // 100 KiB hold fewer rows than there are, of weights and of activations.
    for binding in [u64::MAX, 100 << 10] {
        let lower = |gpu: &mut Gpu| {
            let limit = &mut gpu.limits.max_storage_buffer_binding_size;
            *limit = binding.min(*limit);
        };
        let Some(mut wgpu) = opened_with(&DeviceRequest::default(), lower) else { return };
        for (way, format) in [Way::Plain, Way::Tiled].into_iter().flat_map(|way| FORMATS.map(|f| (way, f))) {
            wgpu.way = way;
            let weight = weight(&wgpu, &values, [out, width], format);
            let w = wgpu.read_weight(&weight).unwrap();
            let same = self::weight(&cpu, &values, [out, width], format);
            assert_eq!(bits(&w), bits(&cpu.read_weight(&same).unwrap()), "{way:?} {format:?}");
            if format != WeightFormat::F32 && binding < u64::MAX {
                // Pieces of NF4 begin with a block of scales: of these widths they are larger than that binding.
                continue;
            }
            let got = linear(&wgpu, &weight, &x, Direction::Forward, Epilogue::None);
            assert_product(&got, &x, |t, j| w[j * width + t], [rows, out, width]);
            let got = linear(&wgpu, &weight, &dy, Direction::Backward, Epilogue::None);
            assert_product(&got, &dy, |t, j| w[t * width + j], [rows, width, out]);
        }
    }
}

#[test]
fn weights_of_16_bits_stay_so_and_multiply_exactly() {
    let [rows, out, width] = [9, 50, 37];
    let (x, dy) = (random(rows * width, 2), random(rows * out, 3));
    let without = |gpu: &mut Gpu| gpu.has_f16 = false;
    let (Some(mut wgpu), Some(mut bits_alone)) = (opened(), opened_with(&DeviceRequest::default(), without))
    else {
        return;
    };
    for dtype in [SourceDtype::Bf16, SourceDtype::F16] {
        // Every fifth is below the normal numbers of f16.
        let size = |index: usize| if index.is_multiple_of(5) { 1e-6 } else { 1.0 };
        let bytes: Vec<u8> = random(out * width, 1)
            .into_iter()
            .enumerate()
            .map(|(index, value)| value * size(index))
            .flat_map(|value| match dtype {
                SourceDtype::F16 => half::f16::from_f32(value).to_le_bytes(),
                _ => half::bf16::from_f32(value).to_le_bytes(),
            })
            .collect();
        let cut = 11 * width * 2;
        let parts = [(11, &bytes[..cut]), (out - 11, &bytes[cut..])].map(|(out, bytes)| WeightPart {
            bytes,
            shape: [out, width],
            dtype,
        });
        let before = wgpu.memory().live;
        let source = WeightSource { parts: &parts, bias: None, format: WeightFormat::F32 };
        let weight = wgpu.prepare_weight(&source).unwrap();
        assert_eq!(wgpu.memory().live - before, (out * width * 2) as u64);
        let w = wgpu.read_weight(&weight).unwrap();
        assert_eq!(w, WeightPart { bytes: &bytes, shape: [out, width], dtype }.values());
        let same = bits_alone.prepare_weight(&source).unwrap();
        for way in [Way::Plain, Way::Tiled] {
            (wgpu.way, bits_alone.way) = (way, way);
            let got = linear(&wgpu, &weight, &x, Direction::Forward, Epilogue::None);
            assert_product(&got, &x, |t, j| w[j * width + t], [rows, out, width]);
            let plain = linear(&bits_alone, &same, &x, Direction::Forward, Epilogue::None);
            assert_eq!(bits(&got), bits(&plain), "{way:?} {dtype:?}");
            let got = linear(&wgpu, &weight, &dy, Direction::Backward, Epilogue::None);
            assert_product(&got, &dy, |t, j| w[t * width + j], [rows, width, out]);
            let plain = linear(&bits_alone, &same, &dy, Direction::Backward, Epilogue::None);
            assert_eq!(bits(&got), bits(&plain), "{way:?} {dtype:?}");
        }
    }
    // A card may lose those below the normal numbers; Mesa's processor does not, so that both ways were tried there.
    assert!(!wgpu.gpu.is_software || wgpu.reads_f16.get() == Some(&wgpu.gpu.has_f16));
    assert_eq!(bits_alone.reads_f16.get(), Some(&false));
}

#[test]
fn a_rows_bits_depend_on_the_row_and_the_weight_alone() {
    let Some(mut wgpu) = opened() else { return };
    let (rows, [out, width]) = (131, [70, 90]);
    let (values, x) = (random(out * width, 1), random(rows * width, 2));
    let weight = weight(&wgpu, &values, [out, width], FORMATS[2]);
    for way in [Way::Plain, Way::Tiled] {
        wgpu.way = way;
        let all = linear(&wgpu, &weight, &x, Direction::Forward, Epilogue::Bias);
        for row in [0, 3, 64, 130] {
            let x = &x[row * width..][..width];
            let alone = linear(&wgpu, &weight, x, Direction::Forward, Epilogue::Bias);
            assert_eq!(bits(&alone), bits(&all[row * out..][..out]), "{way:?}, row {row}");
        }
    }
}

#[test]
fn a_product_large_both_ways_has_the_bits_of_its_rows_alone() {
    let Some(mut wgpu) = opened() else { return };
    let (rows, [out, width]) = (1030, [1030, 37]);
    let (values, x) = (random(out * width, 1), random(rows * width, 2));
    wgpu.way = Way::Tiled;
    for format in [FORMATS[0], FORMATS[2]] {
        let weight = weight(&wgpu, &values, [out, width], format);
        let all = linear(&wgpu, &weight, &x, Direction::Forward, Epilogue::Bias);
        for first in [0, 100, 960] {
            let some =
                linear(&wgpu, &weight, &x[first * width..][..70 * width], Direction::Forward, Epilogue::Bias);
            assert_eq!(bits(&some), bits(&all[first * out..][..70 * out]), "{format:?}, rows from {first}");
        }
        let turned = self::weight(&wgpu, &values, [width, out], format);
        let w = wgpu.read_weight(&turned).unwrap();
        let got = linear(&wgpu, &turned, &x, Direction::Backward, Epilogue::None);
        assert_product(&got, &x, |t, j| w[t * out + j], [rows, out, width]);
    }
}

#[test]
fn products_of_buffers_take_transposes_batches_and_any_offset_in_one_buffer() {
    let Some(mut wgpu) = opened() else { return };
    let [m, n, k] = [35, 37, 19];
    let (left, right) = (random(m * k, 1), random(k * n, 2));
    let turned: Vec<f32> = (0..k * m).map(|e| left[e % m * k + e / m]).collect();
    for way in [Way::Plain, Way::Tiled] {
        wgpu.way = way;
        // One buffer: 3 elements, left twice, right twice, the output twice.
        let output = vec![f32::NAN; 2 * m * n];
        let all = uploaded(&wgpu, &[&[0.0; 3], &turned[..], &turned, &right, &right, &output].concat());
        let at = |element: usize, count: usize| all.part(element * 4, count * 4);
        let right_at = 3 + 2 * m * k;
        let call = Matmul {
            left: factor::Operand { batch_stride: m * k, ..factor::Operand::transposed(at(3, 2 * m * k), m) },
            right: factor::Operand {
                batch_stride: k * n,
                ..factor::Operand::rows(at(right_at, 2 * k * n), n)
            },
            output: factor::Operand {
                batch_stride: m * n,
                ..factor::Operand::rows(at(right_at + 2 * k * n, 2 * m * n), n)
            },
            shape: [m, n, k],
            batch: 2,
            alpha: 1.0,
            beta: 0.0,
        };
        wgpu.matmul(&call).unwrap();
        let got = downloaded(&wgpu, &all);
        let got = &got[right_at + 2 * k * n..];
        for output in got.chunks(m * n) {
            assert_product(output, &left, |t, j| right[t * n + j], [m, n, k]);
        }
        wgpu.matmul(&Matmul { alpha: 2.0, beta: -1.0, ..call }).unwrap();
        let twice = downloaded(&wgpu, &all);
        for (twice, once) in twice[right_at + 2 * k * n..].iter().zip(got) {
            assert!((twice - once).abs() <= 1e-6 * once.abs().max(1.0));
        }
    }
}

/// y of `normalize` of rows of `width`.
fn normalized(wgpu: &Wgpu, x: &[f32], width: usize) -> Vec<f32> {
    let rows = x.len() / width;
    let args = normalize::Args { rows: rows as u32, width: width as u32 };
    let (x, y) = (uploaded(wgpu, x), uploaded(wgpu, &vec![f32::NAN; x.len()]));
    let length = uploaded(wgpu, &vec![f32::NAN; rows]);
    wgpu.launch(&Launch::new(&normalize::FORWARD, &args, &[x.all(), y.all(), length.all()])).unwrap();
    downloaded(wgpu, &y)
}

#[test]
fn sums_over_a_workgroup_have_the_same_bits_whatever_else_is_there_with_and_without_subgroups() {
    let plain = |gpu: &mut Gpu| gpu.has_subgroups = false;
    let request = DeviceRequest::default();
    let (Some(offered), Some(plain)) = (opened(), opened_with(&request, plain)) else { return };
    for width in [1, 63, 385] {
        let x = random(40 * width, 1);
        let all = [&offered, &plain].map(|wgpu| normalized(wgpu, &x, width));
        for row in [0, 7, 39] {
            let x = &x[row * width..][..width];
            for (wgpu, all) in std::iter::zip([&offered, &plain], &all) {
                let alone = normalized(wgpu, x, width);
                assert_eq!(bits(&alone), bits(&all[row * width..][..width]), "width {width}, row {row}");
            }
        }
        // A sum of `width` squares, its root and a quotient.
        let bound = (width + 4) as f32 * f32::EPSILON;
        for (got, wanted) in std::iter::zip(&all[0], &all[1]) {
            assert!((got - wanted).abs() <= bound * wanted.abs(), "width {width}: {got}, {wanted}");
        }
    }
    let is_told_apart = offered.info.numerics_class != plain.info.numerics_class;
    assert_eq!(is_told_apart, offered.gpu.has_subgroups);
}

/// out and dqkv of two texts of 9 and 70 tokens, two heads, one for keys and values.
fn attended(wgpu: &Wgpu, head_dim: usize) -> Vec<f32> {
    let (tokens, stride) = (79, 4 * head_dim);
    let args = attention::Args {
        tokens: tokens as u32,
        texts: 2,
        longest: 70,
        heads: 2,
        kv_heads: 1,
        head_dim: head_dim as u32,
        stride: stride as u32,
        query: 0,
        key: 2 * head_dim as u32,
        value: 3 * head_dim as u32,
        scale: 0.3,
        causal: 1,
        ..bytemuck::Zeroable::zeroed()
    };
    let words = |words: &[u32]| uploaded(wgpu, bytemuck::cast_slice(words));
    let (lengths, rows) = (words(&[0, 9, 79]), words(&vec![0; 2 * tokens]));
    let qkv = uploaded(wgpu, &random(tokens * stride, 1));
    let dout = uploaded(wgpu, &random(tokens * 2 * head_dim, 2));
    let buffer = |count: usize| wgpu.allocate_unfilled(count * 4, Category::Activations).unwrap();
    let (out, log_sum_exp, dqkv) =
        (buffer(tokens * 2 * head_dim), buffer(tokens * 2), buffer(tokens * stride));
    let views = [qkv.all(), lengths.all(), rows.all(), out.all(), log_sum_exp.all()];
    wgpu.launch(&Launch::new(&attention::FORWARD, &args, &views)).unwrap();
    let views = [&dout, &qkv, &out, &log_sum_exp, &lengths, &rows, &dqkv].map(|buffer| buffer.all());
    wgpu.launch(&Launch::new(&attention::BACKWARD, &args, &views)).unwrap();
    [downloaded(wgpu, &out), downloaded(wgpu, &dqkv)].concat()
}

#[test]
fn attention_is_the_same_with_and_without_its_arrays_in_registers() {
    let hardware = |gpu: &mut Gpu| gpu.is_software = false;
    let software = |gpu: &mut Gpu| gpu.is_software = true;
    let request = DeviceRequest::default();
    let (Some(hardware), Some(software)) = (opened_with(&request, hardware), opened_with(&request, software))
    else {
        return;
    };
    for head_dim in [7, 24] {
        let (got, wanted) = (attended(&hardware, head_dim), attended(&software, head_dim));
        for (i, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
            assert!((got - wanted).abs() <= 1e-5 * wanted.abs().max(1.0), "element {i}: {got}, {wanted}");
        }
    }
}

fn add(wgpu: &Wgpu, x: View<'_>, y: View<'_>, count: u32) -> Result<()> {
    let args = elementwise::Args { count, alpha: 2.0 };
    wgpu.launch(&Launch::new(&elementwise::ADD, &args, &[x, y]))
}

#[test]
fn views_that_webgpu_does_not_take_are_copied_and_overlaps_are_refused() {
    let Some(wgpu) = opened() else { return };
    let values = random(64, 1);
    for (x, y) in [(0, 128), (4, 128), (0, 132), (140, 12)] {
        let buffer = uploaded(&wgpu, &values);
        add(&wgpu, buffer.part(x, 100), buffer.part(y, 100), 25).unwrap();
        let mut wanted = values.clone();
        for i in 0..25 {
            wanted[y / 4 + i] += 2.0 * values[x / 4 + i];
        }
        assert_eq!(downloaded(&wgpu, &buffer), wanted, "{x} {y}");
        let overlap = add(&wgpu, buffer.part(0, 100), buffer.part(96, 100), 25);
        assert!(matches!(overlap, Err(Error::Overlap { .. })));
    }
}

#[test]
fn calls_keep_their_order_over_many_submissions_and_folded_grids() {
    let Some(wgpu) = opened_with(&DeviceRequest::default(), |gpu| {
        gpu.limits.max_compute_workgroups_per_dimension = 3;
    }) else {
        return;
    };
    let count = 256 * 10 + 5;
    let (x, y) = (uploaded(&wgpu, &vec![0.5; count]), uploaded(&wgpu, &vec![0.0; count]));
    for step in 0..600 {
        add(&wgpu, x.all(), y.all(), count as u32).unwrap();
        if step == 299 {
            // An upload waits for what was asked before.
            wgpu.upload(bytemuck::cast_slice(&vec![1.0f32; count]), x.all()).unwrap();
        }
    }
    assert_eq!(downloaded(&wgpu, &y), vec![900.0; count]);
}

#[test]
fn bytes_come_and_go_in_any_number() {
    let Some(wgpu) = opened() else { return };
    let buffer = wgpu.allocate(23, Category::Activations).unwrap();
    wgpu.upload(&[7; 23], buffer.all()).unwrap();
    wgpu.upload(&[1, 2, 3, 4, 5], buffer.at(8)).unwrap();
    let mut bytes = [0; 23];
    wgpu.download(buffer.all(), &mut bytes).unwrap();
    let mut wanted = [7; 23];
    wanted[8..13].copy_from_slice(&[1, 2, 3, 4, 5]);
    assert_eq!(bytes, wanted);
    assert!(matches!(wgpu.upload(&[0; 8], buffer.at(16)), Err(Error::OutOfBounds { .. })));
}

#[test]
fn memory_is_counted_used_again_and_refused_before_the_driver_does() {
    let request = DeviceRequest { memory_limit: Some(1 << 20), ..DeviceRequest::default() };
    let Some(wgpu) = opened_with(&request, |_| ()) else { return };
    let before = wgpu.memory().live;
    let buffer = uploaded(&wgpu, &[3.0; 1000]);
    assert_eq!(wgpu.memory().live, before + 4000);
    drop(buffer);
    assert_eq!((wgpu.memory().live, wgpu.memory().cached), (before, 4096));
    let again = wgpu.allocate(4000, Category::Optimizer).unwrap();
    assert_eq!((wgpu.memory().cached, downloaded(&wgpu, &again)), (0, vec![0.0; 1000]));
    let refused = wgpu.allocate(1 << 20, Category::Activations);
    assert!(matches!(refused, Err(Error::OutOfMemory { category: "activations", .. })));
    let small = |gpu: &mut Gpu| gpu.limits.max_buffer_size = 1 << 20;
    let Some(wgpu) = opened_with(&DeviceRequest::default(), small) else { return };
    let refused = wgpu.allocate((1 << 20) + 1, Category::Activations);
    assert!(matches!(refused, Err(Error::BindingTooLarge { limit: 1_048_576, .. })));
}

#[test]
fn failures_become_errors_and_stay() {
    let Some(wgpu) = opened() else { return };
    let buffer = uploaded(&wgpu, &[1.0; 4]);
    let broken = Function {
        name: "broken",
        enable: "",
        source: "fn broken() { nonsense }",
        accesses: &[],
        constants: &[],
    };
    let error = wgpu.pipelines.of_function(&broken).err().unwrap();
    assert!(matches!(error, Error::DeviceFailed { call: "compile", .. }), "{error}");
    let error = wgpu.download(buffer.all(), &mut [0; 16]).unwrap_err().to_string();
    assert!(error.contains("wgpu:0 failed at") && error.contains("nonsense"), "{error}");

    let Some(wgpu) = opened() else { return };
    let (x, y) = (uploaded(&wgpu, &[1.0; 4]), uploaded(&wgpu, &[1.0; 4]));
    add(&wgpu, x.all(), y.all(), 4).unwrap();
    wgpu.gpu.device.destroy();
    let error = wgpu.synchronize().unwrap_err();
    assert!(matches!(error, Error::DeviceFailed { .. }), "{error}");
    assert!(add(&wgpu, x.all(), y.all(), 4).is_err());
}

/// The sources of products without a device: valid, and with the arguments that this crate gives.
#[test]
fn sources_of_products_have_the_arguments_of_products() {
    use motley_kernels::{Arguments, Dtype};
    for (way, format) in [Way::Plain, Way::Tiled].into_iter().flat_map(|way| FORMATS_READ.map(|f| (way, f))) {
        let (enable, source) = (format.enable(), way.source(format));
        let source = format!("{enable}{}{source}", motley_kernels::WGSL_PRELUDE);
        let module = naga::front::wgsl::parse_str(&source).unwrap();
        let flags = naga::valid::ValidationFlags::all();
        let capabilities = match format {
            Format::F16 => naga::valid::Capabilities::SHADER_FLOAT16,
            _ => naga::valid::Capabilities::empty(),
        };
        naga::valid::Validator::new(flags, capabilities).validate(&module).unwrap();
        let args = module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some("Args")).unwrap().1;
        let naga::TypeInner::Struct { members, .. } = &args.inner else { panic!("Args is no struct") };
        let fields = product::Args::FIELDS.iter().enumerate();
        let wanted: Vec<_> = fields.map(|(i, f)| (f.name, f.dtype == Dtype::F32, i as u32 * 4)).collect();
        let is_f32 = |ty| module.types[ty].inner == naga::TypeInner::Scalar(naga::Scalar::F32);
        let given: Vec<_> =
            members.iter().map(|m| (m.name.as_deref().unwrap(), is_f32(m.ty), m.offset)).collect();
        assert_eq!(given, wanted);
    }
}

#[test]
fn what_is_found_is_described_or_its_lack_is() {
    let found = discover();
    assert!(!found.devices.is_empty() || !found.missing.is_empty());
    for (index, device) in found.devices.iter().enumerate() {
        assert!(
            device.index == index && !device.name.is_empty() && !device.capability.is_empty(),
            "{device:?}"
        );
    }
    for missing in &found.missing {
        assert!(missing.remedy.contains("Vulkan"), "{missing:?}");
    }
}

#[test]
fn what_the_device_cannot_do_is_refused() {
    let request = DeviceRequest { precision: Precision::Bf16, ..DeviceRequest::default() };
    assert!(matches!(Wgpu::new(&request), Err(Error::Precision { .. })));
    let request = DeviceRequest { index: 1000, ..DeviceRequest::default() };
    assert!(matches!(Wgpu::new(&request), Err(Error::Unavailable { .. })));
}
