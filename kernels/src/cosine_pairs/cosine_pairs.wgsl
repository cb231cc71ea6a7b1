// A workgroup a row. The formulas stand in mod.rs.

struct Args {
    rows: u32,
    width: u32,
}

@group(0) @binding(0) var<storage, read> forward_a: array<f32>;
@group(0) @binding(1) var<storage, read> forward_b: array<f32>;
@group(0) @binding(2) var<storage, read_write> forward_cosine: array<f32>;
@group(0) @binding(3) var<uniform> forward_args: Args;

@group(0) @binding(0) var<storage, read> backward_dcosine: array<f32>;
@group(0) @binding(1) var<storage, read> backward_a: array<f32>;
@group(0) @binding(2) var<storage, read> backward_b: array<f32>;
@group(0) @binding(3) var<storage, read_write> backward_da: array<f32>;
@group(0) @binding(4) var<storage, read_write> backward_db: array<f32>;
@group(0) @binding(5) var<uniform> backward_args: Args;

const LANES: u32 = 64u;
const LENGTH_MIN: f32 = 1e-12;

@compute @workgroup_size(64)
fn cosine_pairs_forward(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    thread: Thread,
) {
    let lane = thread.lane;
    let row = block_of(id, groups);
    if row >= forward_args.rows {
        return;
    }
    let start = row * forward_args.width;
    var sums = vec3<f32>();
    for (var i = lane; i < forward_args.width; i += LANES) {
        let a = forward_a[start + i];
        let b = forward_b[start + i];
        sums += vec3<f32>(a * b, a * a, b * b);
    }
    let along = workgroup_sum(sums.x, thread, LANES);
    let length_a = at_least(sqrt(workgroup_sum(sums.y, thread, LANES)), LENGTH_MIN);
    let length_b = at_least(sqrt(workgroup_sum(sums.z, thread, LANES)), LENGTH_MIN);
    if lane == 0u {
        forward_cosine[row] = along / length_a / length_b;
    }
}

@compute @workgroup_size(64)
fn cosine_pairs_backward(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    thread: Thread,
) {
    let lane = thread.lane;
    let row = block_of(id, groups);
    if row >= backward_args.rows {
        return;
    }
    let start = row * backward_args.width;
    var sums = vec3<f32>();
    for (var i = lane; i < backward_args.width; i += LANES) {
        let a = backward_a[start + i];
        let b = backward_b[start + i];
        sums += vec3<f32>(a * b, a * a, b * b);
    }
    let along = workgroup_sum(sums.x, thread, LANES);
    let length_a = at_least(sqrt(workgroup_sum(sums.y, thread, LANES)), LENGTH_MIN);
    let length_b = at_least(sqrt(workgroup_sum(sums.z, thread, LANES)), LENGTH_MIN);
    let cosine = along / length_a / length_b;
    let d = backward_dcosine[row];
    for (var i = lane; i < backward_args.width; i += LANES) {
        let a = backward_a[start + i] / length_a;
        let b = backward_b[start + i] / length_b;
        backward_da[start + i] = d * (b - cosine * a) / length_a;
        backward_db[start + i] = d * (a - cosine * b) / length_b;
    }
}
