// A thread an element.

struct Args {
    count: u32,
    alpha: f32,
}

@group(0) @binding(0) var<storage, read> add_x: array<f32>;
@group(0) @binding(1) var<storage, read_write> add_y: array<f32>;
@group(0) @binding(2) var<uniform> add_args: Args;

@group(0) @binding(0) var<storage, read_write> fill_y: array<f32>;
@group(0) @binding(1) var<uniform> fill_args: Args;

@compute @workgroup_size(256)
fn elementwise_add(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = block_of(id, groups) * 256u + lane;
    if i < add_args.count {
        add_y[i] += add_args.alpha * add_x[i];
    }
}

@compute @workgroup_size(256)
fn elementwise_fill(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = block_of(id, groups) * 256u + lane;
    if i < fill_args.count {
        fill_y[i] = fill_args.alpha;
    }
}
