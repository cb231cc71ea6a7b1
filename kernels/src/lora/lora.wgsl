// Eight ranks at a time, so that a row of x is read once for all of them. The formulas stand in mod.rs.
//
//   dot, expand   a workgroup a row
//   outer         a workgroup 16 columns and 8 ranks; a thread takes every 16th row of one column

struct Args {
    rows: u32,
    rank: u32,
    width: u32,
    stride: u32,
    offset: u32,
    scale: f32,
}

@group(0) @binding(0) var<storage, read> dot_x: array<f32>;
@group(0) @binding(1) var<storage, read> dot_m: array<f32>;
@group(0) @binding(2) var<storage, read_write> dot_h: array<f32>;

@group(0) @binding(0) var<storage, read> expand_h: array<f32>;
@group(0) @binding(1) var<storage, read> expand_m: array<f32>;
@group(0) @binding(2) var<storage, read_write> expand_y: array<f32>;

@group(0) @binding(0) var<storage, read> outer_h: array<f32>;
@group(0) @binding(1) var<storage, read> outer_x: array<f32>;
@group(0) @binding(2) var<storage, read_write> outer_g: array<f32>;

@group(0) @binding(3) var<uniform> args: Args;

const LANES: u32 = 64u;
const RANKS: u32 = 8u;
const COLUMNS: u32 = 16u;
const SLICES: u32 = 16u;

var<workgroup> dot_sums: array<f32, 512>;
var<workgroup> outer_sums: array<f32, 2048>;

@compute @workgroup_size(64)
fn lora_dot(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = block_of(id, groups);
    if row >= args.rows {
        return;
    }
    let start = args.offset + row * args.stride;
    for (var first = 0u; first < args.rank; first += RANKS) {
        let ranks = min(RANKS, args.rank - first);
        var sums: array<f32, 8>;
        for (var n = lane; n < args.width; n += LANES) {
            let x = dot_x[start + n];
            for (var r = 0u; r < ranks; r += 1u) {
                sums[r] += x * dot_m[(first + r) * args.width + n];
            }
        }
        workgroupBarrier();
        for (var r = 0u; r < RANKS; r += 1u) {
            dot_sums[r * LANES + lane] = sums[r];
        }
        workgroupBarrier();
        if lane < ranks {
            var total = 0.0;
            for (var i = 0u; i < LANES; i += 1u) {
                total += dot_sums[lane * LANES + i];
            }
            dot_h[row * args.rank + first + lane] = total;
        }
    }
}

@compute @workgroup_size(64)
fn lora_expand(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = block_of(id, groups);
    if row >= args.rows {
        return;
    }
    for (var n = lane; n < args.width; n += LANES) {
        var sum = 0.0;
        for (var r = 0u; r < args.rank; r += 1u) {
            sum += expand_h[row * args.rank + r] * expand_m[r * args.width + n];
        }
        expand_y[args.offset + row * args.stride + n] += args.scale * sum;
    }
}

@compute @workgroup_size(256)
fn lora_outer(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let block = block_of(id, groups);
    let blocks = (args.width + COLUMNS - 1u) / COLUMNS;
    let first = block / blocks * RANKS;
    if first >= args.rank {
        return;
    }
    let ranks = min(RANKS, args.rank - first);
    let n = block % blocks * COLUMNS + lane % COLUMNS;
    let slice = lane / COLUMNS;
    var sums: array<f32, 8>;
    if n < args.width {
        for (var t = slice; t < args.rows; t += SLICES) {
            let x = outer_x[args.offset + t * args.stride + n];
            for (var r = 0u; r < ranks; r += 1u) {
                sums[r] += x * outer_h[t * args.rank + first + r];
            }
        }
    }
    for (var r = 0u; r < RANKS; r += 1u) {
        outer_sums[r * 256u + lane] = sums[r];
    }
    workgroupBarrier();
    // A rank for each slice of threads.
    if slice < ranks && n < args.width {
        var total = 0.0;
        for (var i = 0u; i < SLICES; i += 1u) {
            total += outer_sums[slice * 256u + i * COLUMNS + lane % COLUMNS];
        }
        outer_g[(first + slice) * args.width + n] += args.scale * total;
    }
}
