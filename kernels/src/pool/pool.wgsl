// A workgroup a text, a thread every 256th feature. The formulas stand in mod.rs.

struct Args {
    texts: u32,
    hidden: u32,
    kind: u32,
}

@group(0) @binding(0) var<storage, read> forward_x: array<f32>;
@group(0) @binding(1) var<storage, read> forward_cumulative_lengths: array<u32>;
@group(0) @binding(2) var<storage, read_write> forward_out: array<f32>;
@group(0) @binding(3) var<uniform> forward_args: Args;

@group(0) @binding(0) var<storage, read> backward_dout: array<f32>;
@group(0) @binding(1) var<storage, read> backward_x: array<f32>;
@group(0) @binding(2) var<storage, read> backward_cumulative_lengths: array<u32>;
@group(0) @binding(3) var<storage, read_write> backward_dx: array<f32>;
@group(0) @binding(4) var<uniform> backward_args: Args;

const MEAN: u32 = 0u;
const CLS: u32 = 1u;
const LAST_TOKEN: u32 = 2u;
const MAX: u32 = 3u;
const MEAN_SQRT_LENGTH: u32 = 4u;

// Of token `index` of `length` in the sum.
fn weight(kind: u32, index: u32, length: u32) -> f32 {
    let n = f32(length);
    if kind == MEAN {
        return 1.0 / n;
    } else if kind == CLS {
        return select(0.0, 1.0, index == 0u);
    } else if kind == LAST_TOKEN {
        return select(0.0, 1.0, index + 1u == length);
    } else if kind == MEAN_SQRT_LENGTH {
        return 1.0 / sqrt(n);
    }
    return f32(index + 1u) / (n * (n + 1.0) * 0.5);
}

fn is_larger(value: f32, largest: f32) -> bool {
    return value > largest || (is_nan(value) && !is_nan(largest));
}

@compute @workgroup_size(256)
fn pool_forward(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let args = forward_args;
    let text = block_of(id, groups);
    if text >= args.texts {
        return;
    }
    let start = forward_cumulative_lengths[text];
    let end = forward_cumulative_lengths[text + 1u];
    for (var h = lane; h < args.hidden; h += 256u) {
        var result = 0.0;
        if args.kind == MAX {
            for (var t = start; t < end; t += 1u) {
                let value = forward_x[t * args.hidden + h];
                if t == start || is_larger(value, result) {
                    result = value;
                }
            }
        } else {
            for (var t = start; t < end; t += 1u) {
                let share = weight(args.kind, t - start, end - start);
                // A token of no weight is not looked at: 0 times NaN would be NaN.
                if share != 0.0 {
                    result += share * forward_x[t * args.hidden + h];
                }
            }
        }
        forward_out[text * args.hidden + h] = result;
    }
}

@compute @workgroup_size(256)
fn pool_backward(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let args = backward_args;
    let text = block_of(id, groups);
    if text >= args.texts {
        return;
    }
    let start = backward_cumulative_lengths[text];
    let end = backward_cumulative_lengths[text + 1u];
    for (var h = lane; h < args.hidden; h += 256u) {
        let d = backward_dout[text * args.hidden + h];
        var best = start;
        if args.kind == MAX {
            for (var t = start; t < end; t += 1u) {
                if is_larger(backward_x[t * args.hidden + h], backward_x[best * args.hidden + h]) {
                    best = t;
                }
            }
        }
        for (var t = start; t < end; t += 1u) {
            var share = select(0.0, d, t == best);
            if args.kind != MAX {
                share = d * weight(args.kind, t - start, end - start);
            }
            backward_dx[t * args.hidden + h] = share;
        }
    }
}
