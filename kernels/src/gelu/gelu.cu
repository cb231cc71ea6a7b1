// A thread eight elements. The formulas stand in mod.rs.

struct Args {
    u32 count;
    u32 kind;
};

__device__ __forceinline__ float derivative(float x, u32 kind) {
    if (kind == GELU_EXACT) {
#if ACTIVATION_BITS == 32
        float density = 0.39894228040143268f * expf(-0.5f * x * x);
#else
        float density = 0.39894228040143268f * __expf(-0.5f * x * x);
#endif
        // Far out the density is 0, and infinity times 0 would be NaN.
        return normal_share(x) + (density == 0.0f ? 0.0f : x * density);
    }
    if (kind == GELU_TANH) {
        float t = tanhf(tanh_argument(x));
        float slope = 0.79788456080286536f * (1.0f + 0.134145f * x * x);
        float rest = 1.0f - t * t;
        return 0.5f * (1.0f + t) + (rest == 0.0f ? 0.0f : 0.5f * x * rest * slope);
    }
    return x > 0.0f ? 1.0f : 0.0f;
}

// Of one kind, so that it is asked for once.
template <u32 Kind>
__device__ __forceinline__ void activate_eight(float (&v)[8]) {
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        v[i] = activated(v[i], Kind);
    }
}

template <u32 Kind>
__device__ __forceinline__ void differentiate_eight(float (&v)[8], const float (&d)[8]) {
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        v[i] = d[i] * derivative(v[i], Kind);
    }
}

extern "C" __global__ void gelu_forward(const activation* x, activation* y, Args args) {
    u32 start = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    bool eights = rows_of_eights(x, 8) && rows_of_eights(y, 8);
    if (eights && args.count >= 8 && start <= args.count - 8) {
        float v[8];
        load8(x + start, v);
        switch (args.kind) {
            case GELU_EXACT:
                activate_eight<GELU_EXACT>(v);
                break;
            case GELU_TANH:
                activate_eight<GELU_TANH>(v);
                break;
            default:
                activate_eight<RELU>(v);
        }
        store8(y + start, v);
        return;
    }
    for (u32 i = start; i < args.count && i < start + 8; i++) {
        store(y + i, activated(load(x + i), args.kind));
    }
}

extern "C" __global__ void gelu_backward(const activation* dy, const activation* x, activation* dx, Args args) {
    u32 start = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    bool eights = rows_of_eights(x, 8) && rows_of_eights(dy, 8) && rows_of_eights(dx, 8);
    if (eights && args.count >= 8 && start <= args.count - 8) {
        float v[8], d[8];
        load8(x + start, v);
        load8(dy + start, d);
        switch (args.kind) {
            case GELU_EXACT:
                differentiate_eight<GELU_EXACT>(v, d);
                break;
            case GELU_TANH:
                differentiate_eight<GELU_TANH>(v, d);
                break;
            default:
                differentiate_eight<RELU>(v, d);
        }
        store8(dx + start, v);
        return;
    }
    for (u32 i = start; i < args.count && i < start + 8; i++) {
        store(dx + i, load(dy + i) * derivative(load(x + i), args.kind));
    }
}
