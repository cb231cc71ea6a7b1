// A thread eight elements: four bytes of codes, one scale. The format stands in mod.rs.

struct Args {
    u32 count;
};

struct DoubleArgs {
    u32 count;
    float offset;
};

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
        values[threadIdx.x] = nf4_value(threadIdx.x);
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
        values[threadIdx.x] = nf4_value(threadIdx.x);
    }
    __syncthreads();
    u32 start = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (start < args.count) {
        float absmax = nf4_scale(codes, nested_absmax, map, args.offset, start / 64);
        dequantize(packed, absmax, out, start, args.count, values);
    }
}
