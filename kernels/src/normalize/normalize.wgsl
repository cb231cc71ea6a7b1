// A workgroup a row. The formulas stand in mod.rs.

struct Args {
    rows: u32,
    width: u32,
}

@group(0) @binding(0) var<storage, read> forward_x: array<f32>;
@group(0) @binding(1) var<storage, read_write> forward_y: array<f32>;
@group(0) @binding(2) var<storage, read_write> forward_length: array<f32>;
@group(0) @binding(3) var<uniform> forward_args: Args;

@group(0) @binding(0) var<storage, read> backward_dy: array<f32>;
@group(0) @binding(1) var<storage, read> backward_y: array<f32>;
@group(0) @binding(2) var<storage, read> backward_length: array<f32>;
@group(0) @binding(3) var<storage, read_write> backward_dx: array<f32>;
@group(0) @binding(4) var<uniform> backward_args: Args;

const LANES: u32 = 64u;
const LENGTH_MIN: f32 = 1e-12;

@compute @workgroup_size(64)
fn normalize_forward(
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
    var squares = 0.0;
    for (var i = lane; i < forward_args.width; i += LANES) {
        let x = forward_x[start + i];
        squares += x * x;
    }
    let length = at_least(sqrt(workgroup_sum(squares, thread, LANES)), LENGTH_MIN);
    for (var i = lane; i < forward_args.width; i += LANES) {
        forward_y[start + i] = forward_x[start + i] / length;
    }
    if lane == 0u {
        forward_length[row] = length;
    }
}

@compute @workgroup_size(64)
fn normalize_backward(
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
    var sum = 0.0;
    for (var i = lane; i < backward_args.width; i += LANES) {
        sum += backward_dy[start + i] * backward_y[start + i];
    }
    let along = workgroup_sum(sum, thread, LANES);
    let length = backward_length[row];
    for (var i = lane; i < backward_args.width; i += LANES) {
        backward_dx[start + i] = (backward_dy[start + i] - backward_y[start + i] * along) / length;
    }
}
