// A warp a head of a token. The formulas stand in mod.rs.

struct Args {
    u32 tokens;
    u32 heads;
    u32 kv_heads;
    u32 head_dim;
    float epsilon;
};

extern "C" __global__ void head_norm_forward(const activation* x, const float* query_gamma, const float* key_gamma,
                                             activation* y, float* reciprocal_root, Args args) {
    u32 all = args.heads + 2 * args.kv_heads, normalised = args.heads + args.kv_heads;
    u32 index = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (index >= args.tokens * all) {
        return;
    }
    u32 token = index / all, head = index % all, lane = threadIdx.x % 32;
    u64 start = (u64)index * args.head_dim;
    if (head >= normalised) {
        for (u32 i = lane; i < args.head_dim; i += 32) {
            store(y + start + i, load(x + start + i));
        }
        return;
    }
    const float* gamma = head < args.heads ? query_gamma : key_gamma;
    float squares = 0.0f;
    for (u32 i = lane; i < args.head_dim; i += 32) {
        float value = load(x + start + i);
        squares += value * value;
    }
    float reciprocal = 1.0f / sqrtf(warp_sum(squares) / (float)args.head_dim + args.epsilon);
    for (u32 i = lane; i < args.head_dim; i += 32) {
        store(y + start + i, load(x + start + i) * reciprocal * gamma[i]);
    }
    if (lane == 0) {
        reciprocal_root[(u64)token * normalised + head] = reciprocal;
    }
}

extern "C" __global__ void head_norm_backward(activation* gradient, const activation* x, const float* query_gamma,
                                              const float* key_gamma, const float* reciprocal_root, Args args) {
    u32 all = args.heads + 2 * args.kv_heads, normalised = args.heads + args.kv_heads;
    u32 index = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (index >= args.tokens * normalised) {
        return;
    }
    u32 token = index / normalised, head = index % normalised, lane = threadIdx.x % 32;
    u64 start = ((u64)token * all + head) * args.head_dim;
    const float* gamma = head < args.heads ? query_gamma : key_gamma;
    float r = reciprocal_root[index];
    float sum = 0.0f;
    for (u32 i = lane; i < args.head_dim; i += 32) {
        sum += load(gradient + start + i) * gamma[i] * load(x + start + i) * r;
    }
    float mean = warp_sum(sum) / (float)args.head_dim;
    for (u32 i = lane; i < args.head_dim; i += 32) {
        float g = load(gradient + start + i) * gamma[i];
        store(gradient + start + i, r * (g - load(x + start + i) * r * mean));
    }
}
