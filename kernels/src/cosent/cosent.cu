// One block: a batch has at most some thousand pairs. A thread sums whole rows of the matrix of differences, so that
// the order of additions is fixed. The formulas stand in mod.rs.

struct Args {
    u32 pairs;
    float scale;
};

extern "C" __global__ void cosent_forward_backward(const float* cosine, const float* label, float* loss,
                                                   float* gradient, Args args) {
    __shared__ float scratch[32];
    u32 n = args.pairs;
    float most = 0.0f;
    // NaN is no larger than anything, so it is carried by a sum of its own.
    float poison = 0.0f;
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
        poison += cosine[i] * 0.0f;
        for (u32 j = 0; j < n; j++) {
            if (label[i] < label[j]) {
                most = fmaxf(most, args.scale * (cosine[i] - cosine[j]));
            }
        }
    }
    most = block_max(most, scratch) + block_sum(poison, scratch);
    float total = 0.0f;
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
        for (u32 j = 0; j < n; j++) {
            if (label[i] < label[j]) {
                total += expf(args.scale * (cosine[i] - cosine[j]) - most);
            }
        }
    }
    float log_sum = most + logf(block_sum(total, scratch) + expf(-most));
    if (threadIdx.x == 0) {
        *loss = log_sum;
    }
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
        float sum = 0.0f;
        for (u32 j = 0; j < n; j++) {
            if (label[i] < label[j]) {
                sum += expf(args.scale * (cosine[i] - cosine[j]) - log_sum);
            } else if (label[j] < label[i]) {
                sum -= expf(args.scale * (cosine[j] - cosine[i]) - log_sum);
            }
        }
        gradient[i] = args.scale * sum;
    }
}
