// One block: the vector is an adapter's gradient. In f64, as the specification asks.

struct Args {
    u32 count;
};

extern "C" __global__ void sum_squares_forward(const float* x, float* out, Args args) {
    __shared__ double part[1024];
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < args.count; i += blockDim.x) {
        sum += (double)x[i] * (double)x[i];
    }
    part[threadIdx.x] = sum;
    for (u32 half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) {
            part[threadIdx.x] += part[threadIdx.x + half];
        }
    }
    if (threadIdx.x == 0) {
        *out = (float)part[0];
    }
}
