// A thread an element of y. The formulas stand in mod.rs.

struct Args {
    rows: u32,
    width: u32,
}

const THREADS = 256u;

// 0 below −87, where exp(−g) is near the end of its range; NaN passes.
fn share(gate: f32) -> f32 {
    if gate < -87.0 {
        return 0.0;
    }
    return 1.0 / (1.0 + exact_exp(-gate));
}

@group(0) @binding(0) var<storage, read> forward_x: array<f32>;
@group(0) @binding(1) var<storage, read_write> forward_y: array<f32>;
@group(0) @binding(2) var<uniform> forward_args: Args;

@compute @workgroup_size(THREADS)
fn swiglu_forward(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = (id.x + id.y * groups.x) * THREADS + lane;
    let width = forward_args.width;
    if index >= forward_args.rows * width {
        return;
    }
    let place = index / width * 2u * width + index % width;
    let gate = forward_x[place];
    forward_y[index] = gate * share(gate) * forward_x[place + width];
}

@group(0) @binding(0) var<storage, read> backward_dy: array<f32>;
@group(0) @binding(1) var<storage, read> backward_x: array<f32>;
@group(0) @binding(2) var<storage, read_write> backward_dx: array<f32>;
@group(0) @binding(3) var<uniform> backward_args: Args;

@compute @workgroup_size(THREADS)
fn swiglu_backward(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = (id.x + id.y * groups.x) * THREADS + lane;
    let width = backward_args.width;
    if index >= backward_args.rows * width {
        return;
    }
    let place = index / width * 2u * width + index % width;
    let d = backward_dy[index];
    let gate = backward_x[place];
    let s = share(gate);
    backward_dx[place] = d * backward_x[place + width] * s * (1.0 + gate * (1.0 - s));
    backward_dx[place + width] = d * gate * s;
}
