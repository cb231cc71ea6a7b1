// A workgroup a head of a token. The formulas stand in mod.rs.

struct Args {
    tokens: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    epsilon: f32,
}

const THREADS = 64u;

@group(0) @binding(0) var<storage, read> forward_x: array<f32>;
@group(0) @binding(1) var<storage, read> forward_query_gamma: array<f32>;
@group(0) @binding(2) var<storage, read> forward_key_gamma: array<f32>;
@group(0) @binding(3) var<storage, read_write> forward_y: array<f32>;
@group(0) @binding(4) var<storage, read_write> forward_root: array<f32>;
@group(0) @binding(5) var<uniform> args: Args;

@compute @workgroup_size(THREADS)
fn head_norm_forward(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    thread: Thread,
) {
    let lane = thread.lane;
    let normalised = args.heads + args.kv_heads;
    let all = normalised + args.kv_heads;
    let index = id.x + id.y * groups.x;
    if index >= args.tokens * all {
        return;
    }
    let token = index / all;
    let head = index % all;
    let start = index * args.head_dim;
    if head >= normalised {
        for (var i = lane; i < args.head_dim; i += THREADS) {
            forward_y[start + i] = forward_x[start + i];
        }
        return;
    }
    var squares = 0.0;
    for (var i = lane; i < args.head_dim; i += THREADS) {
        squares += forward_x[start + i] * forward_x[start + i];
    }
    let reciprocal = 1.0 / sqrt(workgroup_sum(squares, thread, THREADS) / f32(args.head_dim) + args.epsilon);
    for (var i = lane; i < args.head_dim; i += THREADS) {
        var gamma = forward_key_gamma[i];
        if head < args.heads {
            gamma = forward_query_gamma[i];
        }
        forward_y[start + i] = forward_x[start + i] * reciprocal * gamma;
    }
    if lane == 0u {
        forward_root[token * normalised + head] = reciprocal;
    }
}

@group(0) @binding(0) var<storage, read_write> backward_gradient: array<f32>;
@group(0) @binding(1) var<storage, read> backward_x: array<f32>;
@group(0) @binding(2) var<storage, read> backward_query_gamma: array<f32>;
@group(0) @binding(3) var<storage, read> backward_key_gamma: array<f32>;
@group(0) @binding(4) var<storage, read> backward_root: array<f32>;

@compute @workgroup_size(THREADS)
fn head_norm_backward(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    thread: Thread,
) {
    let lane = thread.lane;
    let normalised = args.heads + args.kv_heads;
    let index = id.x + id.y * groups.x;
    if index >= args.tokens * normalised {
        return;
    }
    let head = index % normalised;
    let start = (index / normalised * (normalised + args.kv_heads) + head) * args.head_dim;
    let r = backward_root[index];
    var sum = 0.0;
    for (var i = lane; i < args.head_dim; i += THREADS) {
        sum += backward_g(start, i, head) * backward_x[start + i] * r;
    }
    let mean = workgroup_sum(sum, thread, THREADS) / f32(args.head_dim);
    for (var i = lane; i < args.head_dim; i += THREADS) {
        let g = backward_g(start, i, head);
        backward_gradient[start + i] = r * (g - backward_x[start + i] * r * mean);
    }
}

// dy·gamma
fn backward_g(start: u32, i: u32, head: u32) -> f32 {
    if head < args.heads {
        return backward_gradient[start + i] * backward_query_gamma[i];
    }
    return backward_gradient[start + i] * backward_key_gamma[i];
}
