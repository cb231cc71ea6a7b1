// One workgroup; a thread adds every 256th square and keeps what rounding took (Kahan 1965): WGSL has no f64.

struct Args {
    count: u32,
}

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
@group(0) @binding(2) var<uniform> args: Args;

const LANES: u32 = 256u;

@compute @workgroup_size(256)
fn sum_squares_forward(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    thread: Thread,
) {
    let lane = thread.lane;
    if block_of(id, groups) > 0u {
        return;
    }
    var sum = 0.0;
    var lost = 0.0;
    for (var i = lane; i < args.count; i += LANES) {
        let term = x[i] * x[i] - lost;
        let next = sum + term;
        lost = (next - sum) - term;
        sum = next;
    }
    let total = workgroup_sum(sum, thread, LANES);
    if lane == 0u {
        out[0] = total;
    }
}
