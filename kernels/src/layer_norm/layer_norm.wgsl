// A workgroup a row. The formulas stand in mod.rs.

struct Args {
    rows: u32,
    hidden: u32,
    epsilon: f32,
}

struct ResidualArgs {
    rows: u32,
    hidden: u32,
    epsilon: f32,
    keep: u32,
}

@group(0) @binding(0) var<storage, read> forward_x: array<f32>;
@group(0) @binding(1) var<storage, read> forward_gamma: array<f32>;
@group(0) @binding(2) var<storage, read> forward_beta: array<f32>;
@group(0) @binding(3) var<storage, read_write> forward_y: array<f32>;
@group(0) @binding(4) var<storage, read_write> forward_mean: array<f32>;
@group(0) @binding(5) var<storage, read_write> forward_reciprocal_deviation: array<f32>;
@group(0) @binding(6) var<uniform> forward_args: Args;

@group(0) @binding(0) var<storage, read_write> residual_forward_x: array<f32>;
@group(0) @binding(1) var<storage, read> residual_forward_residual: array<f32>;
@group(0) @binding(2) var<storage, read> residual_forward_gamma: array<f32>;
@group(0) @binding(3) var<storage, read> residual_forward_beta: array<f32>;
@group(0) @binding(4) var<storage, read_write> residual_forward_y: array<f32>;
@group(0) @binding(5) var<storage, read_write> residual_forward_mean: array<f32>;
@group(0) @binding(6) var<storage, read_write> residual_forward_reciprocal_deviation: array<f32>;
@group(0) @binding(7) var<uniform> residual_forward_args: ResidualArgs;

@group(0) @binding(0) var<storage, read> backward_dy: array<f32>;
@group(0) @binding(1) var<storage, read> backward_x: array<f32>;
@group(0) @binding(2) var<storage, read> backward_gamma: array<f32>;
@group(0) @binding(3) var<storage, read> backward_mean: array<f32>;
@group(0) @binding(4) var<storage, read> backward_reciprocal_deviation: array<f32>;
@group(0) @binding(5) var<storage, read_write> backward_dx: array<f32>;
@group(0) @binding(6) var<uniform> backward_args: Args;

const LANES: u32 = 64u;

@compute @workgroup_size(64)
fn layer_norm_forward(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    thread: Thread,
) {
    let lane = thread.lane;
    let args = forward_args;
    let row = block_of(id, groups);
    if row >= args.rows {
        return;
    }
    let start = row * args.hidden;
    var sum = 0.0;
    for (var i = lane; i < args.hidden; i += LANES) {
        sum += forward_x[start + i];
    }
    let mean = workgroup_sum(sum, thread, LANES) / f32(args.hidden);
    var squares = 0.0;
    for (var i = lane; i < args.hidden; i += LANES) {
        let d = forward_x[start + i] - mean;
        squares += d * d;
    }
    let variance = workgroup_sum(squares, thread, LANES) / f32(args.hidden);
    let reciprocal = 1.0 / sqrt(variance + args.epsilon);
    for (var i = lane; i < args.hidden; i += LANES) {
        forward_y[start + i] = (forward_x[start + i] - mean) * reciprocal * forward_gamma[i] + forward_beta[i];
    }
    if lane == 0u {
        forward_mean[row] = mean;
        forward_reciprocal_deviation[row] = reciprocal;
    }
}

// An element of the sum, once the thread whose it is has been there: a thread reads back what it wrote itself.
fn residual_sum(i: u32) -> f32 {
    if residual_forward_args.keep != 0u {
        return residual_forward_x[i];
    }
    return residual_forward_x[i] + residual_forward_residual[i];
}

@compute @workgroup_size(64)
fn layer_norm_residual_forward(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    thread: Thread,
) {
    let lane = thread.lane;
    let args = residual_forward_args;
    let row = block_of(id, groups);
    if row >= args.rows {
        return;
    }
    let start = row * args.hidden;
    var sum = 0.0;
    for (var i = lane; i < args.hidden; i += LANES) {
        let value = residual_forward_x[start + i] + residual_forward_residual[start + i];
        if args.keep != 0u {
            residual_forward_x[start + i] = value;
        }
        sum += value;
    }
    let mean = workgroup_sum(sum, thread, LANES) / f32(args.hidden);
    var squares = 0.0;
    for (var i = lane; i < args.hidden; i += LANES) {
        let d = residual_sum(start + i) - mean;
        squares += d * d;
    }
    let variance = workgroup_sum(squares, thread, LANES) / f32(args.hidden);
    let reciprocal = 1.0 / sqrt(variance + args.epsilon);
    for (var i = lane; i < args.hidden; i += LANES) {
        let n = (residual_sum(start + i) - mean) * reciprocal;
        residual_forward_y[start + i] = n * residual_forward_gamma[i] + residual_forward_beta[i];
    }
    if lane == 0u && args.keep != 0u {
        residual_forward_mean[row] = mean;
        residual_forward_reciprocal_deviation[row] = reciprocal;
    }
}

@compute @workgroup_size(64)
fn layer_norm_backward(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    thread: Thread,
) {
    let lane = thread.lane;
    let args = backward_args;
    let row = block_of(id, groups);
    if row >= args.rows {
        return;
    }
    let start = row * args.hidden;
    let mean = backward_mean[row];
    let reciprocal = backward_reciprocal_deviation[row];
    var sum_g = 0.0;
    var sum_gn = 0.0;
    for (var i = lane; i < args.hidden; i += LANES) {
        let g = backward_dy[start + i] * backward_gamma[i];
        sum_g += g;
        sum_gn += g * ((backward_x[start + i] - mean) * reciprocal);
    }
    let mean_g = workgroup_sum(sum_g, thread, LANES) / f32(args.hidden);
    let mean_gn = workgroup_sum(sum_gn, thread, LANES) / f32(args.hidden);
    for (var i = lane; i < args.hidden; i += LANES) {
        let g = backward_dy[start + i] * backward_gamma[i];
        let n = (backward_x[start + i] - mean) * reciprocal;
        backward_dx[start + i] = reciprocal * (g - mean_g - n * mean_gn);
    }
}
