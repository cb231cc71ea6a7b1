// A thread four features of a row: one Philox block. The formulas stand in mod.rs.

struct Args {
    rows: u32,
    features: u32,
    probability: f32,
    seed_low: u32,
    seed_high: u32,
    step: u32,
    site: u32,
    stride: u32,
    offset: u32,
}

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> names: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<uniform> args: Args;

// `adds`: to what y holds.
fn apply(thread: u32, adds: bool) {
    let quads = (args.features + 3u) / 4u;
    let row = thread / quads;
    if row >= args.rows {
        return;
    }
    let quad = thread % quads;
    let key = dropout_key(args.seed_low, args.seed_high, args.step);
    let words = philox(vec4<u32>(quad, args.site, names[2u * row], names[2u * row + 1u]), key);
    let limit = dropout_threshold(args.probability);
    let scale = 1.0 / (1.0 - args.probability);
    for (var i = 0u; i < 4u; i += 1u) {
        let feature = 4u * quad + i;
        if feature < args.features {
            let factor = select(0.0, scale, words[i] >= limit);
            var value = x[args.offset + row * args.stride + feature] * factor;
            let place = row * args.features + feature;
            if adds {
                value += y[place];
            }
            y[place] = value;
        }
    }
}

@compute @workgroup_size(256)
fn dropout_apply(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    apply(block_of(id, groups) * 256u + lane, false);
}

@compute @workgroup_size(256)
fn dropout_apply_add(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    apply(block_of(id, groups) * 256u + lane, true);
}
