// A thread an element. The formulas stand in mod.rs.

struct Args {
    count: u32,
    decay: f32,
    beta1: f32,
    beta2: f32,
    step_size: f32,
    correction2_root: f32,
    epsilon: f32,
    gradient_scale: f32,
}

@group(0) @binding(0) var<storage, read> gradient: array<f32>;
@group(0) @binding(1) var<storage, read_write> parameter: array<f32>;
@group(0) @binding(2) var<storage, read_write> first_moment: array<f32>;
@group(0) @binding(3) var<storage, read_write> second_moment: array<f32>;
@group(0) @binding(4) var<uniform> args: Args;

@compute @workgroup_size(256)
fn adamw_step(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = block_of(id, groups) * 256u + lane;
    if i >= args.count {
        return;
    }
    let g = gradient[i] * args.gradient_scale;
    let m = args.beta1 * first_moment[i] + (1.0 - args.beta1) * g;
    let v = args.beta2 * second_moment[i] + (1.0 - args.beta2) * g * g;
    first_moment[i] = m;
    second_moment[i] = v;
    let denominator = sqrt(v) / args.correction2_root + args.epsilon;
    parameter[i] = parameter[i] * args.decay - args.step_size * m / denominator;
}
