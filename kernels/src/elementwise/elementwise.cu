// The formulas stand in mod.rs.

struct Args {
    u32 count;
    float alpha;
};

extern "C" __global__ void elementwise_add(const activation* x, activation* y, Args args) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < args.count) {
        store(y + i, args.alpha * load(x + i) + load(y + i));
    }
}

extern "C" __global__ void elementwise_fill(float* y, Args args) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < args.count) {
        y[i] = args.alpha;
    }
}
