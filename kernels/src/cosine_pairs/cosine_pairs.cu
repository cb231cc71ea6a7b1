// A warp a pair of rows. The formulas stand in mod.rs.

struct Args {
    u32 rows;
    u32 width;
};

struct Lengths {
    float a;
    float b;
    float dot;
};

__device__ __forceinline__ Lengths measure(const float* a, const float* b, u32 width) {
    float aa = 0.0f, bb = 0.0f, ab = 0.0f;
    for (u32 i = threadIdx.x % 32; i < width; i += 32) {
        aa += a[i] * a[i];
        bb += b[i] * b[i];
        ab += a[i] * b[i];
    }
    float length_a = sqrtf(warp_sum(aa)), length_b = sqrtf(warp_sum(bb));
    // Written so that NaN passes through.
    return {length_a < 1e-12f ? 1e-12f : length_a, length_b < 1e-12f ? 1e-12f : length_b, warp_sum(ab)};
}

extern "C" __global__ void cosine_pairs_forward(const float* a, const float* b, float* cosine, Args args) {
    u32 row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= args.rows) {
        return;
    }
    u64 start = (u64)row * args.width;
    Lengths l = measure(a + start, b + start, args.width);
    if (threadIdx.x % 32 == 0) {
        cosine[row] = l.dot / (l.a * l.b);
    }
}

extern "C" __global__ void cosine_pairs_backward(const float* dcosine, const float* a, const float* b, float* da,
                                                 float* db, Args args) {
    u32 row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= args.rows) {
        return;
    }
    u64 start = (u64)row * args.width;
    Lengths l = measure(a + start, b + start, args.width);
    float both = 1.0f / (l.a * l.b), c = l.dot * both, d = dcosine[row];
    for (u32 i = threadIdx.x % 32; i < args.width; i += 32) {
        float x = a[start + i], y = b[start + i];
        da[start + i] = d * (y * both - c * x / (l.a * l.a));
        db[start + i] = d * (x * both - c * y / (l.b * l.b));
    }
}
