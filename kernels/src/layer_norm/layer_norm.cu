// A warp a row. The formulas stand in mod.rs.

struct Args {
    u32 rows;
    u32 hidden;
    float epsilon;
};

struct Statistics {
    float mean;
    float reciprocal_deviation;
};

__device__ __forceinline__ Statistics statistics(const activation* x, u32 hidden, float epsilon) {
    u32 lane = threadIdx.x % 32;
    float sum = 0.0f;
    for (u32 i = lane; i < hidden; i += 32) {
        sum += load(x + i);
    }
    float mean = warp_sum(sum) / (float)hidden;
    float squares = 0.0f;
    for (u32 i = lane; i < hidden; i += 32) {
        float d = load(x + i) - mean;
        squares += d * d;
    }
    return {mean, 1.0f / sqrtf(warp_sum(squares) / (float)hidden + epsilon)};
}

__device__ __forceinline__ void normalise(const activation* x, const float* gamma, const float* beta, activation* y,
                                          u32 hidden, Statistics s) {
    for (u32 i = threadIdx.x % 32; i < hidden; i += 32) {
        store(y + i, (load(x + i) - s.mean) * s.reciprocal_deviation * gamma[i] + beta[i]);
    }
}

extern "C" __global__ void layer_norm_forward(const activation* x, const float* gamma, const float* beta,
                                              activation* y, float* mean, float* reciprocal_deviation, Args args) {
    u32 row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= args.rows) {
        return;
    }
    u64 start = (u64)row * args.hidden;
    Statistics s = statistics(x + start, args.hidden, args.epsilon);
    normalise(x + start, gamma, beta, y + start, args.hidden, s);
    if (threadIdx.x % 32 == 0) {
        mean[row] = s.mean;
        reciprocal_deviation[row] = s.reciprocal_deviation;
    }
}

extern "C" __global__ void layer_norm_residual_forward(activation* x, const activation* residual, const float* gamma,
                                                       const float* beta, activation* y, float* mean,
                                                       float* reciprocal_deviation, Args args) {
    u32 row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= args.rows) {
        return;
    }
    u64 start = (u64)row * args.hidden;
    // A lane reads back what it wrote itself: the sum as it is stored.
    for (u32 i = threadIdx.x % 32; i < args.hidden; i += 32) {
        store(x + start + i, load(x + start + i) + load(residual + start + i));
    }
    Statistics s = statistics(x + start, args.hidden, args.epsilon);
    normalise(x + start, gamma, beta, y + start, args.hidden, s);
    if (threadIdx.x % 32 == 0) {
        mean[row] = s.mean;
        reciprocal_deviation[row] = s.reciprocal_deviation;
    }
}

extern "C" __global__ void layer_norm_backward(const activation* dy, const activation* x, const float* gamma,
                                               const float* mean, const float* reciprocal_deviation, activation* dx,
                                               Args args) {
    u32 row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= args.rows) {
        return;
    }
    u64 start = (u64)row * args.hidden;
    u32 lane = threadIdx.x % 32;
    float m = mean[row], r = reciprocal_deviation[row];
    float sum_g = 0.0f, sum_gn = 0.0f;
    for (u32 i = lane; i < args.hidden; i += 32) {
        float g = load(dy + start + i) * gamma[i];
        sum_g += g;
        sum_gn += g * (load(x + start + i) - m) * r;
    }
    float mean_g = warp_sum(sum_g) / (float)args.hidden;
    float mean_gn = warp_sum(sum_gn) / (float)args.hidden;
    for (u32 i = lane; i < args.hidden; i += 32) {
        float g = load(dy + start + i) * gamma[i];
        float n = (load(x + start + i) - m) * r;
        store(dx + start + i, r * (g - mean_g - n * mean_gn));
    }
}
