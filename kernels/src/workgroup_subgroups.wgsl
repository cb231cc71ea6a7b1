// Sums and largest values over a workgroup, where the device has subgroups: each takes its own, then few values go
// through memory of the workgroup. Takes no size of a subgroup for granted, nor that the last is full.
//
//   Thread                         what an entry that takes them has as its argument
//   workgroup_sum, workgroup_max   over all `lanes` threads of the workgroup, at most 256, the same bits in each
//
// The order within a subgroup is the driver's: fixed for a device, another on the next.

struct Thread {
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_invocation_id) within: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
}

// One of each subgroup; there may be as many as threads.
var<workgroup> shared_values: array<f32, 256>;

// The first barrier also brings lanes together that left loops at different times.
fn workgroup_sum(x: f32, thread: Thread, lanes: u32) -> f32 {
    workgroupBarrier();
    share_by_subgroup(subgroupAdd(x), thread);
    var sum = 0.0;
    for (var i = 0u; i < thread.subgroups; i += 1u) {
        sum += shared_values[i];
    }
    return sum;
}

fn workgroup_max(x: f32, thread: Thread, lanes: u32) -> f32 {
    workgroupBarrier();
    share_by_subgroup(subgroupMax(x), thread);
    var largest = shared_values[0];
    for (var i = 1u; i < thread.subgroups; i += 1u) {
        largest = max(largest, shared_values[i]);
    }
    return largest;
}

fn share_by_subgroup(part: f32, thread: Thread) {
    if thread.within == 0u {
        shared_values[thread.subgroup] = part;
    }
    workgroupBarrier();
}
