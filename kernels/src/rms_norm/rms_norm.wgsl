// A workgroup a row. The formulas stand in mod.rs.

struct Args {
    rows: u32,
    hidden: u32,
    epsilon: f32,
}

const THREADS = 64u;

@group(0) @binding(0) var<storage, read> forward_x: array<f32>;
@group(0) @binding(1) var<storage, read> forward_gamma: array<f32>;
@group(0) @binding(2) var<storage, read_write> forward_y: array<f32>;
@group(0) @binding(3) var<storage, read_write> forward_root: array<f32>;
@group(0) @binding(4) var<uniform> forward_args: Args;

@compute @workgroup_size(THREADS)
fn rms_norm_forward(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    thread: Thread,
) {
    let lane = thread.lane;
    let row = id.x + id.y * groups.x;
    if row >= forward_args.rows {
        return;
    }
    let hidden = forward_args.hidden;
    let start = row * hidden;
    var squares = 0.0;
    for (var i = lane; i < hidden; i += THREADS) {
        squares += forward_x[start + i] * forward_x[start + i];
    }
    let reciprocal = 1.0 / sqrt(workgroup_sum(squares, thread, THREADS) / f32(hidden) + forward_args.epsilon);
    for (var i = lane; i < hidden; i += THREADS) {
        forward_y[start + i] = forward_x[start + i] * reciprocal * forward_gamma[i];
    }
    if lane == 0u {
        forward_root[row] = reciprocal;
    }
}

@group(0) @binding(0) var<storage, read_write> residual_x: array<f32>;
@group(0) @binding(1) var<storage, read> residual_residual: array<f32>;
@group(0) @binding(2) var<storage, read> residual_gamma: array<f32>;
@group(0) @binding(3) var<storage, read_write> residual_y: array<f32>;
@group(0) @binding(4) var<storage, read_write> residual_root: array<f32>;
@group(0) @binding(5) var<uniform> args: Args;

@compute @workgroup_size(THREADS)
fn rms_norm_residual_forward(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    thread: Thread,
) {
    let lane = thread.lane;
    let row = id.x + id.y * groups.x;
    if row >= args.rows {
        return;
    }
    let start = row * args.hidden;
    var squares = 0.0;
    for (var i = lane; i < args.hidden; i += THREADS) {
        let sum = residual_x[start + i] + residual_residual[start + i];
        residual_x[start + i] = sum;
        squares += sum * sum;
    }
    let reciprocal = 1.0 / sqrt(workgroup_sum(squares, thread, THREADS) / f32(args.hidden) + args.epsilon);
    for (var i = lane; i < args.hidden; i += THREADS) {
        residual_y[start + i] = residual_x[start + i] * reciprocal * residual_gamma[i];
    }
    if lane == 0u {
        residual_root[row] = reciprocal;
    }
}

@group(0) @binding(0) var<storage, read> backward_dy: array<f32>;
@group(0) @binding(1) var<storage, read> backward_x: array<f32>;
@group(0) @binding(2) var<storage, read> backward_gamma: array<f32>;
@group(0) @binding(3) var<storage, read> backward_root: array<f32>;
@group(0) @binding(4) var<storage, read_write> backward_dx: array<f32>;

@compute @workgroup_size(THREADS)
fn rms_norm_backward(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    thread: Thread,
) {
    let lane = thread.lane;
    let row = id.x + id.y * groups.x;
    if row >= args.rows {
        return;
    }
    let start = row * args.hidden;
    let r = backward_root[row];
    var sum = 0.0;
    for (var i = lane; i < args.hidden; i += THREADS) {
        sum += backward_dy[start + i] * backward_gamma[i] * backward_x[start + i] * r;
    }
    let mean = workgroup_sum(sum, thread, THREADS) / f32(args.hidden);
    for (var i = lane; i < args.hidden; i += THREADS) {
        let g = backward_dy[start + i] * backward_gamma[i];
        backward_dx[start + i] = r * (g - backward_x[start + i] * r * mean);
    }
}
