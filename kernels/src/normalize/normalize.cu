// A warp a row. The formulas stand in mod.rs.

struct Args {
    u32 rows;
    u32 width;
};

extern "C" __global__ void normalize_forward(const float* x, float* y, float* length, Args args) {
    u32 row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= args.rows) {
        return;
    }
    u32 lane = threadIdx.x % 32;
    x += (u64)row * args.width;
    y += (u64)row * args.width;
    float squares = 0.0f;
    for (u32 i = lane; i < args.width; i += 32) {
        squares += x[i] * x[i];
    }
    float norm = sqrtf(warp_sum(squares));
    // Written so that NaN passes through.
    float divisor = norm < 1e-12f ? 1e-12f : norm;
    for (u32 i = lane; i < args.width; i += 32) {
        y[i] = x[i] / divisor;
    }
    if (lane == 0) {
        length[row] = divisor;
    }
}

extern "C" __global__ void normalize_backward(const float* dy, const float* y, const float* length, float* dx,
                                              Args args) {
    u32 row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= args.rows) {
        return;
    }
    u32 lane = threadIdx.x % 32;
    u64 start = (u64)row * args.width;
    float along = 0.0f;
    for (u32 i = lane; i < args.width; i += 32) {
        along += dy[start + i] * y[start + i];
    }
    along = warp_sum(along);
    for (u32 i = lane; i < args.width; i += 32) {
        dx[start + i] = (dy[start + i] - y[start + i] * along) / length[row];
    }
}
