// A thread an element of y. The formulas stand in mod.rs.

struct Args {
    u32 rows;
    u32 width;
};

// 0 for a gate far below, where expf overflows; NaN passes.
__device__ __forceinline__ float share(float gate) {
    return 1.0f / (1.0f + expf(-gate));
}

extern "C" __global__ void swiglu_forward(const activation* x, activation* y, Args args) {
    u32 index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= args.rows * args.width) {
        return;
    }
    const activation* pair = x + (u64)(index / args.width) * 2 * args.width + index % args.width;
    float gate = load(pair);
    store(y + index, gate * share(gate) * load(pair + args.width));
}

extern "C" __global__ void swiglu_backward(const activation* dy, const activation* x, activation* dx, Args args) {
    u32 index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= args.rows * args.width) {
        return;
    }
    u64 place = (u64)(index / args.width) * 2 * args.width + index % args.width;
    float d = load(dy + index), gate = load(x + place), up = load(x + place + args.width);
    float s = share(gate);
    store(dx + place, d * up * s * (1.0f + gate * (1.0f - s)));
    store(dx + place + args.width, d * gate * s);
}
