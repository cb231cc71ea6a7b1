// Sums and largest values over a workgroup, through its memory alone: for devices without subgroups.
//
//   Thread                         what an entry that takes them has as its argument
//   workgroup_sum, workgroup_max   over all `lanes` threads of the workgroup, at most 256, the same bits in each

struct Thread {
    @builtin(local_invocation_index) lane: u32,
}

var<workgroup> shared_values: array<f32, 256>;

fn workgroup_sum(x: f32, thread: Thread, lanes: u32) -> f32 {
    workgroupBarrier();
    shared_values[thread.lane] = x;
    workgroupBarrier();
    var sum = vec4<f32>();
    for (var i = 0u; i < lanes; i += 4u) {
        sum += vec4<f32>(shared_values[i], shared_values[i + 1u], shared_values[i + 2u], shared_values[i + 3u]);
    }
    return (sum.x + sum.y) + (sum.z + sum.w);
}

fn workgroup_max(x: f32, thread: Thread, lanes: u32) -> f32 {
    workgroupBarrier();
    shared_values[thread.lane] = x;
    workgroupBarrier();
    var largest = shared_values[0];
    for (var i = 1u; i < lanes; i += 1u) {
        largest = max(largest, shared_values[i]);
    }
    return largest;
}
