// A warp a row. Rows of up to 1024 in eights stay in registers; others are read again for each pass. The formulas
// stand in mod.rs.

struct Args {
    u32 rows;
    u32 hidden;
    float epsilon;
};

struct ResidualArgs {
    u32 rows;
    u32 hidden;
    float epsilon;
    u32 keep;
};

// Groups of eight that a lane holds of a row.
#define GROUPS 4

struct Row {
    float x[GROUPS][8];
};

__device__ __forceinline__ u32 column(int group) {
    return (group * 32 + threadIdx.x % 32) * 8;
}

__device__ __forceinline__ void load_row(const activation* x, u32 hidden, Row& row) {
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        if (column(g) < hidden) {
            load8(x + column(g), row.x[g]);
        }
    }
}

// The backward reads the sum as it is stored, so its statistics must be those.
__device__ __forceinline__ float as_stored(float x) {
    activation stored;
    store(&stored, x);
    return load(&stored);
}

// Whether a row fits the registers and everything is aligned for eights.
__device__ __forceinline__ bool fits(const void* a, const void* b, const void* c, u32 hidden) {
    bool aligned = rows_of_eights(a, hidden) && rows_of_eights(b, hidden) && rows_of_eights(c, hidden);
    return aligned && hidden <= GROUPS * 256;
}

// What is normalised, and where the parts of the result go; no statistics where `mean` is null.
struct Output {
    const float* gamma;
    const float* beta;
    activation* y;
    float* mean;
    float* reciprocal_deviation;
};

__device__ __forceinline__ void keep_statistics(float mean, float reciprocal, const Output& out) {
    if (threadIdx.x % 32 == 0 && out.mean != nullptr) {
        *out.mean = mean;
        *out.reciprocal_deviation = reciprocal;
    }
}

__device__ __forceinline__ void normalise_registers(const Row& row, u32 hidden, float epsilon, const Output& out) {
    float sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        if (column(g) < hidden) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                sum += row.x[g][i];
            }
        }
    }
    float mean = warp_sum(sum) / (float)hidden;
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        if (column(g) < hidden) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                squares += (row.x[g][i] - mean) * (row.x[g][i] - mean);
            }
        }
    }
    float reciprocal = 1.0f / sqrtf(warp_sum(squares) / (float)hidden + epsilon);
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        if (column(g) < hidden) {
            float y[8], gamma[8], beta[8];
            load8(out.gamma + column(g), gamma);
            load8(out.beta + column(g), beta);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                y[i] = (row.x[g][i] - mean) * reciprocal * gamma[i] + beta[i];
            }
            store8(out.y + column(g), y);
        }
    }
    keep_statistics(mean, reciprocal, out);
}

// An element of the sum; the row itself where there is no residual.
__device__ __forceinline__ float summed(const activation* x, const activation* residual, u32 i) {
    return residual == nullptr ? load(x + i) : as_stored(load(x + i) + load(residual + i));
}

__device__ __forceinline__ void normalise_memory(const activation* x, const activation* residual, u32 hidden,
                                                 float epsilon, const Output& out) {
    u32 lane = threadIdx.x % 32;
    float sum = 0.0f, squares = 0.0f;
    for (u32 i = lane; i < hidden; i += 32) {
        sum += summed(x, residual, i);
    }
    float mean = warp_sum(sum) / (float)hidden;
    for (u32 i = lane; i < hidden; i += 32) {
        float d = summed(x, residual, i) - mean;
        squares += d * d;
    }
    float reciprocal = 1.0f / sqrtf(warp_sum(squares) / (float)hidden + epsilon);
    for (u32 i = lane; i < hidden; i += 32) {
        store(out.y + i, (summed(x, residual, i) - mean) * reciprocal * out.gamma[i] + out.beta[i]);
    }
    keep_statistics(mean, reciprocal, out);
}

extern "C" __global__ void layer_norm_forward(const activation* x, const float* gamma, const float* beta,
                                              activation* y, float* mean, float* reciprocal_deviation, Args args) {
    u32 index = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (index >= args.rows) {
        return;
    }
    u64 start = (u64)index * args.hidden;
    Output out = {gamma, beta, y + start, mean + index, reciprocal_deviation + index};
    if (fits(x, y, gamma, args.hidden) && rows_of_eights(beta, 8)) {
        Row row;
        load_row(x + start, args.hidden, row);
        normalise_registers(row, args.hidden, args.epsilon, out);
    } else {
        normalise_memory(x + start, nullptr, args.hidden, args.epsilon, out);
    }
}

extern "C" __global__ void layer_norm_residual_forward(activation* x, const activation* residual, const float* gamma,
                                                       const float* beta, activation* y, float* mean,
                                                       float* reciprocal_deviation, ResidualArgs args) {
    u32 index = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (index >= args.rows) {
        return;
    }
    u64 start = (u64)index * args.hidden;
    x += start;
    residual += start;
    Output out = {gamma, beta, y + start, args.keep ? mean + index : nullptr, reciprocal_deviation + index};
    bool parameters = rows_of_eights(gamma, 8) && rows_of_eights(beta, 8);
    if (fits(x, residual, y, args.hidden) && parameters) {
        Row row, other;
        load_row(x, args.hidden, row);
        load_row(residual, args.hidden, other);
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            if (column(g) < args.hidden) {
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    row.x[g][i] = as_stored(row.x[g][i] + other.x[g][i]);
                }
                if (args.keep) {
                    store8(x + column(g), row.x[g]);
                }
            }
        }
        normalise_registers(row, args.hidden, args.epsilon, out);
        return;
    }
    if (args.keep) {
        // A lane reads back what it wrote itself.
        for (u32 i = threadIdx.x % 32; i < args.hidden; i += 32) {
            store(x + i, load(x + i) + load(residual + i));
        }
        residual = nullptr;
    }
    normalise_memory(x, residual, args.hidden, args.epsilon, out);
}

__device__ __forceinline__ void backward_registers(const activation* dy, const activation* x, const float* gamma,
                                                   float mean, float reciprocal, activation* dx, u32 hidden) {
    Row g, n;
    load_row(dy, hidden, g);
    load_row(x, hidden, n);
    float sum_g = 0.0f, sum_gn = 0.0f;
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
        if (column(group) < hidden) {
            float factors[8];
            load8(gamma + column(group), factors);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                g.x[group][i] *= factors[i];
                n.x[group][i] = (n.x[group][i] - mean) * reciprocal;
                sum_g += g.x[group][i];
                sum_gn += g.x[group][i] * n.x[group][i];
            }
        }
    }
    float mean_g = warp_sum(sum_g) / (float)hidden, mean_gn = warp_sum(sum_gn) / (float)hidden;
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
        if (column(group) < hidden) {
            float d[8];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                d[i] = reciprocal * (g.x[group][i] - mean_g - n.x[group][i] * mean_gn);
            }
            store8(dx + column(group), d);
        }
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
    float m = mean[row], r = reciprocal_deviation[row];
    if (fits(dy, x, dx, args.hidden) && rows_of_eights(gamma, 8)) {
        backward_registers(dy + start, x + start, gamma, m, r, dx + start, args.hidden);
        return;
    }
    u32 lane = threadIdx.x % 32;
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
