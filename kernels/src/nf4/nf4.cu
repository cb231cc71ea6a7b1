// A thread eight elements: four bytes of codes, one scale. The format stands in mod.rs.

struct Args {
    u32 count;
};

struct DoubleArgs {
    u32 count;
    float offset;
};

__device__ __forceinline__ float code_value(u32 code) {
    const float values[16] = {-1.0f,         -0.6961928f,  -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f,
                              -0.091050036f, 0.0f,         0.0795803f,   0.1609302f,  0.2461123f,   0.33791524f,
                              0.44070983f,   0.562617f,    0.72295684f,  1.0f};
    return values[code];
}

__device__ __forceinline__ void dequantize(const u8* packed, float absmax, activation* out, u32 start, u32 count,
                                           const float* values) {
    float x[8];
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        u32 byte = start + 2 * i < count ? packed[start / 2 + i] : 0;
        x[2 * i] = values[byte >> 4] * absmax;
        x[2 * i + 1] = values[byte & 15] * absmax;
    }
    if (start + 8 <= count && (u64)(out + start) % 16 == 0) {
        store8(out + start, x);
        return;
    }
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        if (start + i < count) {
            store(out + start + i, x[i]);
        }
    }
}

extern "C" __global__ void nf4_dequantize(const u8* packed, const float* absmax, activation* out, Args args) {
    __shared__ float values[16];
    if (threadIdx.x < 16) {
        values[threadIdx.x] = code_value(threadIdx.x);
    }
    __syncthreads();
    u32 start = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (start < args.count) {
        dequantize(packed, absmax[start / 64], out, start, args.count, values);
    }
}

extern "C" __global__ void nf4_dequantize_double(const u8* packed, const u8* codes, const float* nested_absmax,
                                                 const float* map, activation* out, DoubleArgs args) {
    __shared__ float values[16];
    if (threadIdx.x < 16) {
        values[threadIdx.x] = code_value(threadIdx.x);
    }
    __syncthreads();
    u32 start = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (start < args.count) {
        u32 block = start / 64;
        // Rounded after the product, as the specification does: no fused multiply-add.
        float absmax = __fadd_rn(__fmul_rn(map[codes[block]], nested_absmax[block / 256]), args.offset);
        dequantize(packed, absmax, out, start, args.count, values);
    }
}
