// A thread one word of packed codes: eight elements. The layout stands in mod.rs.

struct Args {
    count: u32,
}

struct DoubleArgs {
    count: u32,
    offset: f32,
}

@group(0) @binding(0) var<storage, read> packed: array<u32>;

@group(0) @binding(1) var<storage, read> dequantize_absmax: array<f32>;
@group(0) @binding(2) var<storage, read_write> dequantize_out: array<f32>;
@group(0) @binding(3) var<uniform> dequantize_args: Args;

@group(0) @binding(1) var<storage, read> dequantize_double_codes: array<u32>;
@group(0) @binding(2) var<storage, read> dequantize_double_nested_absmax: array<f32>;
@group(0) @binding(3) var<storage, read> dequantize_double_map: array<f32>;
@group(0) @binding(4) var<storage, read_write> dequantize_double_out: array<f32>;
@group(0) @binding(5) var<uniform> dequantize_double_args: DoubleArgs;

const CODE = array<f32, 16>(
    -1.0,
    -0.6961928,
    -0.52507305,
    -0.3949175,
    -0.28444138,
    -0.18477343,
    -0.091050036,
    0.0,
    0.0795803,
    0.1609302,
    0.2461123,
    0.33791524,
    0.44070983,
    0.562617,
    0.72295684,
    1.0,
);

// Element `i` of a word: the first of a byte is its high nibble.
fn value(word: u32, i: u32) -> f32 {
    var code = CODE;
    return code[(word >> (8u * (i / 2u) + 4u * (1u - i % 2u))) & 15u];
}

@compute @workgroup_size(256)
fn nf4_dequantize(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = (block_of(id, groups) * 256u + lane) * 8u;
    if first >= dequantize_args.count {
        return;
    }
    let word = packed[first / 8u];
    let absmax = dequantize_absmax[first / 64u];
    for (var i = 0u; i < min(8u, dequantize_args.count - first); i += 1u) {
        dequantize_out[first + i] = value(word, i) * absmax;
    }
}

@compute @workgroup_size(256)
fn nf4_dequantize_double(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = (block_of(id, groups) * 256u + lane) * 8u;
    if first >= dequantize_double_args.count {
        return;
    }
    let word = packed[first / 8u];
    let block = first / 64u;
    let code = (dequantize_double_codes[block / 4u] >> (8u * (block % 4u))) & 255u;
    let scaled = dequantize_double_map[code] * dequantize_double_nested_absmax[block / 256u];
    // Rounded by itself, as the specification does: the z of a workgroup is 0, but no compiler knows it, so that this
    // product and the sum below are not fused.
    let rounded = bitcast<f32>(bitcast<u32>(scaled) ^ id.z);
    let absmax = rounded + dequantize_double_args.offset;
    for (var i = 0u; i < min(8u, dequantize_double_args.count - first); i += 1u) {
        dequantize_double_out[first + i] = value(word, i) * absmax;
    }
}
