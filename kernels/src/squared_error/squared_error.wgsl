// One workgroup. The formulas stand in mod.rs.

struct Args {
    count: u32,
}

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> label: array<f32>;
@group(0) @binding(2) var<storage, read_write> loss: array<f32>;
@group(0) @binding(3) var<storage, read_write> gradient: array<f32>;
@group(0) @binding(4) var<uniform> args: Args;

const LANES: u32 = 256u;

@compute @workgroup_size(256)
fn squared_error_forward_backward(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    thread: Thread,
) {
    let lane = thread.lane;
    if block_of(id, groups) > 0u {
        return;
    }
    let count = f32(max(args.count, 1u));
    var sum = 0.0;
    for (var i = lane; i < args.count; i += LANES) {
        let d = x[i] - label[i];
        sum += d * d;
        gradient[i] = (d + d) / count;
    }
    let total = workgroup_sum(sum, thread, LANES);
    if lane == 0u {
        loss[0] = total / count;
    }
}
