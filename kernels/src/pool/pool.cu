// A block 32 features of a text; in sums its warps take every eighth token, and are added in their order. The formulas
// stand in mod.rs.

struct Args {
    u32 texts;
    u32 hidden;
    u32 kind;
};

#define MEAN 0
#define CLS 1
#define LAST_TOKEN 2
#define MAX 3
#define MEAN_SQRT_LENGTH 4
#define WEIGHTED_MEAN 5

// The tokens that count, from and to: a token of no weight is not looked at.
__device__ __forceinline__ void counted(u32 kind, u32& start, u32& end) {
    if (start == end) {
        return;
    }
    if (kind == CLS) {
        end = start + 1;
    } else if (kind == LAST_TOKEN) {
        start = end - 1;
    }
}

__device__ __forceinline__ float weight(u32 kind, u32 index, u32 length) {
    float n = (float)length;
    switch (kind) {
        case MEAN:
            return 1.0f / n;
        case MEAN_SQRT_LENGTH:
            return 1.0f / sqrtf(n);
        case WEIGHTED_MEAN:
            return (float)(index + 1) / (n * (n + 1.0f) / 2.0f);
        default:
            return 1.0f;
    }
}

// The token with the largest value; the first of equals, the first NaN before all.
__device__ __forceinline__ u32 largest(const activation* x, u32 start, u32 end, u32 hidden) {
    u32 best = start;
    float value = load(x + (u64)start * hidden);
    for (u32 t = start + 1; t < end; t++) {
        float candidate = load(x + (u64)t * hidden);
        if (candidate > value || (candidate != candidate && value == value)) {
            best = t;
            value = candidate;
        }
    }
    return best;
}

#define FEATURES 32u

// The text and the feature of a thread.
__device__ __forceinline__ void place(const Args& args, u32& text, u32& feature) {
    u32 parts = (args.hidden + FEATURES - 1) / FEATURES;
    text = blockIdx.x / parts;
    feature = blockIdx.x % parts * FEATURES + threadIdx.x % 32;
}

extern "C" __global__ void pool_forward(const activation* x, const u32* cumulative_lengths, float* out, Args args) {
    __shared__ float part[8][FEATURES];
    u32 text, h, warp = threadIdx.x / 32;
    place(args, text, h);
    u32 first = cumulative_lengths[text], end = cumulative_lengths[text + 1];
    u32 length = end - first, start = first;
    counted(args.kind, start, end);
    float result = 0.0f;
    if (h < args.hidden) {
        if (args.kind == MAX) {
            bool takes = warp == 0 && length > 0;
            result = takes ? load(x + h + (u64)largest(x + h, start, end, args.hidden) * args.hidden) : 0.0f;
        } else {
            for (u32 t = start + warp; t < end; t += 8) {
                result += weight(args.kind, t - first, length) * load(x + (u64)t * args.hidden + h);
            }
        }
    }
    part[warp][threadIdx.x % 32] = result;
    __syncthreads();
    if (warp == 0 && h < args.hidden) {
        // The largest is the first warp's alone.
        u32 warps = args.kind == MAX ? 1 : 8;
        for (u32 w = 1; w < warps; w++) {
            result += part[w][threadIdx.x];
        }
        out[(u64)text * args.hidden + h] = result;
    }
}

extern "C" __global__ void pool_backward(const float* dout, const activation* x, const u32* cumulative_lengths,
                                         activation* dx, Args args) {
    u32 text, h;
    place(args, text, h);
    if (h >= args.hidden) {
        return;
    }
    u32 first = cumulative_lengths[text], last = cumulative_lengths[text + 1];
    u32 length = last - first, start = first, end = last;
    counted(args.kind, start, end);
    float d = dout[(u64)text * args.hidden + h];
    u32 best = args.kind == MAX && length > 0 ? largest(x + h, first, last, args.hidden) : 0;
    for (u32 t = first + threadIdx.x / 32; t < last; t += 8) {
        bool counts = args.kind == MAX ? t == best : t >= start && t < end;
        store(dx + (u64)t * args.hidden + h, counts ? d * weight(args.kind, t - first, length) : 0.0f);
    }
}
