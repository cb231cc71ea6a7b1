// A block a row. The formulas stand in mod.rs.

struct Args {
    u32 rows;
    u32 columns;
    float weight;
};

extern "C" __global__ void cross_entropy_forward_backward(const u32* target, const u32* masked, float* logits,
                                                          float* loss, Args args) {
    __shared__ float scratch[32];
    u32 row = blockIdx.x;
    logits += (u64)row * args.columns;
    masked += (u64)row * args.columns;
    float most = MINUS_INFINITY;
    for (u32 j = threadIdx.x; j < args.columns; j += blockDim.x) {
        most = masked[j] == 0 ? fmaxf(most, logits[j]) : most;
    }
    most = block_max(most, scratch);
    float total = 0.0f;
    for (u32 j = threadIdx.x; j < args.columns; j += blockDim.x) {
        total += masked[j] == 0 ? expf(logits[j] - most) : 0.0f;
    }
    float log_sum = most + logf(block_sum(total, scratch));
    u32 t = target[row];
    if (threadIdx.x == 0) {
        loss[row] = args.weight * (log_sum - logits[t]);
    }
    __syncthreads();
    for (u32 j = threadIdx.x; j < args.columns; j += blockDim.x) {
        float p = masked[j] == 0 ? expf(logits[j] - log_sum) : 0.0f;
        logits[j] = args.weight * (p - (j == t ? 1.0f : 0.0f));
    }
}
