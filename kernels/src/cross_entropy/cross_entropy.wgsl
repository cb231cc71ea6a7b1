// A workgroup a row. The formulas stand in mod.rs.

struct Args {
    rows: u32,
    columns: u32,
    weight: f32,
}

@group(0) @binding(0) var<storage, read> wanted_column: array<u32>;
@group(0) @binding(1) var<storage, read> masked: array<u32>;
@group(0) @binding(2) var<storage, read_write> logits: array<f32>;
@group(0) @binding(3) var<storage, read_write> loss: array<f32>;
@group(0) @binding(4) var<uniform> args: Args;

const LANES: u32 = 64u;

@compute @workgroup_size(64)
fn cross_entropy_forward_backward(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    thread: Thread,
) {
    let lane = thread.lane;
    let row = block_of(id, groups);
    if row >= args.rows {
        return;
    }
    let start = row * args.columns;
    let wanted = wanted_column[row];
    let wanted_logit = logits[start + wanted];
    var largest = LOWEST;
    for (var j = lane; j < args.columns; j += LANES) {
        if masked[start + j] == 0u {
            largest = max(largest, logits[start + j]);
        }
    }
    largest = workgroup_max(largest, thread, LANES);
    var total = 0.0;
    for (var j = lane; j < args.columns; j += LANES) {
        if masked[start + j] == 0u {
            total += exact_exp(logits[start + j] - largest);
        }
    }
    let log_sum = largest + exact_log(workgroup_sum(total, thread, LANES));
    if lane == 0u {
        loss[row] = args.weight * (log_sum - wanted_logit);
    }
    for (var j = lane; j < args.columns; j += LANES) {
        var p = 0.0;
        if masked[start + j] == 0u {
            p = exact_exp(logits[start + j] - log_sum);
        }
        logits[start + j] = args.weight * (p - select(0.0, 1.0, j == wanted));
    }
}
