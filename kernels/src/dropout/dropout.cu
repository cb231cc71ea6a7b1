// A thread the four features that share a Philox block. The formulas stand in mod.rs.

struct Args {
    u32 rows;
    u32 features;
    float probability;
    u32 seed_low;
    u32 seed_high;
    u32 step;
    u32 site;
    u32 stride;
    u32 offset;
};

template <bool Add>
__device__ __forceinline__ void apply(const activation* x, const u32* names, activation* y, const Args& args) {
    u32 quads = (args.features + 3) / 4;
    u32 index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= args.rows * quads) {
        return;
    }
    u32 row = index / quads, quad = index % quads;
    u32 words[4] = {quad, args.site, names[2 * row], names[2 * row + 1]};
    philox(words, args.seed_low, args.seed_high ^ (args.step * 0x9e3779b9u));
    u32 threshold = dropout_threshold(args.probability);
    float scale = 1.0f / (1.0f - args.probability);
    for (u32 i = 0; i < 4 && quad * 4 + i < args.features; i++) {
        u32 feature = quad * 4 + i;
        activation* target = y + (u64)row * args.features + feature;
        float value = words[i] >= threshold ? load(x + args.offset + (u64)row * args.stride + feature) * scale : 0.0f;
        store(target, Add ? load(target) + value : value);
    }
}

extern "C" __global__ void dropout_apply(const activation* x, const u32* names, activation* y, Args args) {
    apply<false>(x, names, y, args);
}

extern "C" __global__ void dropout_apply_add(const activation* x, const u32* names, activation* y, Args args) {
    apply<true>(x, names, y, args);
}
