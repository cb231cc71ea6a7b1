// A thread an element. The formulas stand in mod.rs.

struct Args {
    count: u32,
    kind: u32,
}

@group(0) @binding(0) var<storage, read> forward_x: array<f32>;
@group(0) @binding(1) var<storage, read_write> forward_y: array<f32>;
@group(0) @binding(2) var<uniform> forward_args: Args;

@group(0) @binding(0) var<storage, read> backward_dy: array<f32>;
@group(0) @binding(1) var<storage, read> backward_x: array<f32>;
@group(0) @binding(2) var<storage, read_write> backward_dx: array<f32>;
@group(0) @binding(3) var<uniform> backward_args: Args;

@compute @workgroup_size(256)
fn gelu_forward(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = block_of(id, groups) * 256u + lane;
    if i >= forward_args.count {
        return;
    }
    forward_y[i] = activation(forward_args.kind, forward_x[i]);
}

@compute @workgroup_size(256)
fn gelu_backward(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = block_of(id, groups) * 256u + lane;
    if i >= backward_args.count {
        return;
    }
    let x = backward_x[i];
    var slope = select(0.0, 1.0, x > 0.0);
    if backward_args.kind == EXACT {
        slope = 0.5 * (1.0 + exact_erf(x * ROOT_HALF));
        let density = exact_exp(-0.5 * x * x) * 0.39894228;
        if density != 0.0 {
            slope += x * density;
        }
    } else if backward_args.kind == TANH {
        let t = exact_tanh(tanh_argument(x));
        slope = 0.5 * (1.0 + t);
        let rest = 1.0 - t * t;
        if rest != 0.0 {
            slope += 0.5 * x * rest * ROOT_TWO_OVER_PI * (1.0 + 0.134145 * x * x);
        }
    }
    backward_dx[i] = backward_dy[i] * slope;
}
