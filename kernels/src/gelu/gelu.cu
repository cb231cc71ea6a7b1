// A thread eight elements. The formulas stand in mod.rs.

struct Args {
    u32 count;
    u32 kind;
};

#define EXACT 0
#define TANH 1

__device__ __forceinline__ float value(float x, u32 kind) {
    if (kind == EXACT) {
        return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    }
    if (kind == TANH) {
        return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    }
    // NaN passes: it is not below 0.
    return x < 0.0f ? 0.0f : x;
}

__device__ __forceinline__ float derivative(float x, u32 kind) {
    if (kind == EXACT) {
        float density = 0.39894228040143268f * expf(-0.5f * x * x);
        // Far out the density is 0, and infinity times 0 would be NaN.
        return 0.5f * (1.0f + erff(x * 0.70710678118654752f)) + (density == 0.0f ? 0.0f : x * density);
    }
    if (kind == TANH) {
        float t = tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x));
        float slope = 0.79788456080286536f * (1.0f + 0.134145f * x * x);
        float rest = 1.0f - t * t;
        return 0.5f * (1.0f + t) + (rest == 0.0f ? 0.0f : 0.5f * x * rest * slope);
    }
    return x > 0.0f ? 1.0f : 0.0f;
}

extern "C" __global__ void gelu_forward(const activation* x, activation* y, Args args) {
    u32 start = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    bool eights = rows_of_eights(x, 8) && rows_of_eights(y, 8);
    if (eights && args.count >= 8 && start <= args.count - 8) {
        float v[8];
        load8(x + start, v);
        for (int i = 0; i < 8; i++) {
            v[i] = value(v[i], args.kind);
        }
        store8(y + start, v);
        return;
    }
    for (u32 i = start; i < args.count && i < start + 8; i++) {
        store(y + i, value(load(x + i), args.kind));
    }
}

extern "C" __global__ void gelu_backward(const activation* dy, const activation* x, activation* dx, Args args) {
    u32 start = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    bool eights = rows_of_eights(x, 8) && rows_of_eights(dy, 8) && rows_of_eights(dx, 8);
    if (eights && args.count >= 8 && start <= args.count - 8) {
        float v[8], d[8];
        load8(x + start, v);
        load8(dy + start, d);
        for (int i = 0; i < 8; i++) {
            v[i] = d[i] * derivative(v[i], args.kind);
        }
        store8(dx + start, v);
        return;
    }
    for (u32 i = start; i < args.count && i < start + 8; i++) {
        store(dx + i, load(dy + i) * derivative(load(x + i), args.kind));
    }
}
