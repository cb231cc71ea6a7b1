// One workgroup; a thread takes every 256th pair, first as the one with the lower label. The formulas stand in mod.rs.

struct Args {
    pairs: u32,
    scale: f32,
}

@group(0) @binding(0) var<storage, read> cosine: array<f32>;
@group(0) @binding(1) var<storage, read> label: array<f32>;
@group(0) @binding(2) var<storage, read_write> loss: array<f32>;
@group(0) @binding(3) var<storage, read_write> gradient: array<f32>;
@group(0) @binding(4) var<uniform> args: Args;

const LANES: u32 = 256u;

@compute @workgroup_size(256)
fn cosent_forward_backward(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    thread: Thread,
) {
    let lane = thread.lane;
    if block_of(id, groups) > 0u {
        return;
    }
    var largest = 0.0;
    for (var i = lane; i < args.pairs; i += LANES) {
        for (var j = 0u; j < args.pairs; j += 1u) {
            if label[i] < label[j] {
                largest = max(largest, args.scale * (cosine[i] - cosine[j]));
            }
        }
    }
    largest = workgroup_max(largest, thread, LANES);
    var total = 0.0;
    for (var i = lane; i < args.pairs; i += LANES) {
        var part = 0.0;
        for (var j = 0u; j < args.pairs; j += 1u) {
            if label[i] < label[j] {
                part += exact_exp(args.scale * (cosine[i] - cosine[j]) - largest);
            }
        }
        total += part;
    }
    total = workgroup_sum(total, thread, LANES) + exact_exp(-largest);
    let value = largest + exact_log(total);
    if lane == 0u {
        loss[0] = value;
    }
    for (var i = lane; i < args.pairs; i += LANES) {
        var sum = 0.0;
        for (var j = 0u; j < args.pairs; j += 1u) {
            let difference = args.scale * (cosine[i] - cosine[j]);
            if label[i] < label[j] {
                sum += exact_exp(difference - value);
            } else if label[j] < label[i] {
                sum -= exact_exp(-difference - value);
            }
        }
        gradient[i] = args.scale * sum;
    }
}
