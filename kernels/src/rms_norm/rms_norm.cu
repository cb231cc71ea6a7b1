// A warp a row. The formulas stand in mod.rs.

struct Args {
    u32 rows;
    u32 hidden;
    float epsilon;
};

__device__ __forceinline__ float normalise(const activation* x, const float* gamma, activation* y, const Args& args) {
    u32 lane = threadIdx.x % 32;
    float squares = 0.0f;
    for (u32 i = lane; i < args.hidden; i += 32) {
        float value = load(x + i);
        squares += value * value;
    }
    float reciprocal = 1.0f / sqrtf(warp_sum(squares) / (float)args.hidden + args.epsilon);
    for (u32 i = lane; i < args.hidden; i += 32) {
        store(y + i, load(x + i) * reciprocal * gamma[i]);
    }
    return reciprocal;
}

extern "C" __global__ void rms_norm_forward(const activation* x, const float* gamma, activation* y,
                                            float* reciprocal_root, Args args) {
    u32 row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= args.rows) {
        return;
    }
    u64 start = (u64)row * args.hidden;
    float reciprocal = normalise(x + start, gamma, y + start, args);
    if (threadIdx.x % 32 == 0) {
        reciprocal_root[row] = reciprocal;
    }
}

extern "C" __global__ void rms_norm_residual_forward(activation* x, const activation* residual, const float* gamma,
                                                     activation* y, float* reciprocal_root, Args args) {
    u32 row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= args.rows) {
        return;
    }
    u64 start = (u64)row * args.hidden;
    // A lane reads back what it wrote itself: the sum as it is stored.
    for (u32 i = threadIdx.x % 32; i < args.hidden; i += 32) {
        store(x + start + i, load(x + start + i) + load(residual + start + i));
    }
    float reciprocal = normalise(x + start, gamma, y + start, args);
    if (threadIdx.x % 32 == 0) {
        reciprocal_root[row] = reciprocal;
    }
}

extern "C" __global__ void rms_norm_backward(const activation* dy, const activation* x, const float* gamma,
                                             const float* reciprocal_root, activation* dx, Args args) {
    u32 row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= args.rows) {
        return;
    }
    u64 start = (u64)row * args.hidden;
    u32 lane = threadIdx.x % 32;
    float r = reciprocal_root[row];
    float sum = 0.0f;
    for (u32 i = lane; i < args.hidden; i += 32) {
        sum += load(dy + start + i) * gamma[i] * load(x + start + i) * r;
    }
    float mean = warp_sum(sum) / (float)args.hidden;
    for (u32 i = lane; i < args.hidden; i += 32) {
        float g = load(dy + start + i) * gamma[i];
        store(dx + start + i, r * (g - load(x + start + i) * r * mean));
    }
}
