// The formulas stand in mod.rs. `h` and `m` are f32; `x` and `y` are activations, rows of them perhaps parts of wider
// rows. Every sum has one owner, so the bits are the same in every run.

struct Args {
    u32 rows;
    u32 rank;
    u32 width;
    u32 stride;
    u32 offset;
    float scale;
};

// Rows that a warp takes together, and ranks that it sums at a time: a value of m serves so many rows.
#define ROWS 4
#define RANKS 8

extern "C" __global__ void lora_dot(const activation* x, const float* m, float* h, Args args) {
    u32 first = (blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32) * ROWS;
    u32 lane = threadIdx.x % 32;
    if (first >= args.rows) {
        return;
    }
    x += args.offset;
    for (u32 rank = 0; rank < args.rank; rank += RANKS) {
        float sum[ROWS][RANKS] = {};
        for (u32 n = lane; n < args.width; n += 32) {
            float value[ROWS];
#pragma unroll
            for (u32 i = 0; i < ROWS; i++) {
                // A row that is not there repeats the last.
                u32 row = min(first + i, args.rows - 1);
                value[i] = load(x + (u64)row * args.stride + n);
            }
#pragma unroll
            for (u32 r = 0; r < RANKS; r++) {
                float factor = m[(u64)min(rank + r, args.rank - 1) * args.width + n];
#pragma unroll
                for (u32 i = 0; i < ROWS; i++) {
                    sum[i][r] += value[i] * factor;
                }
            }
        }
#pragma unroll
        for (u32 i = 0; i < ROWS; i++) {
#pragma unroll
            for (u32 r = 0; r < RANKS; r++) {
                float total = warp_sum(sum[i][r]);
                if (lane == 0 && first + i < args.rows && rank + r < args.rank) {
                    h[(u64)(first + i) * args.rank + rank + r] = total;
                }
            }
        }
    }
}

// A thread four columns of eight rows.
#define EXPAND_ROWS 8
#define EXPAND_COLUMNS 4

extern "C" __global__ void lora_expand(const float* h, const float* m, activation* y, Args args) {
    u32 columns = (args.width + EXPAND_COLUMNS - 1) / EXPAND_COLUMNS;
    u32 index = blockIdx.x * blockDim.x + threadIdx.x;
    u32 first = index / columns * EXPAND_ROWS;
    u32 column = index % columns * EXPAND_COLUMNS;
    if (first >= args.rows) {
        return;
    }
    float sum[EXPAND_ROWS][EXPAND_COLUMNS] = {};
    for (u32 r = 0; r < args.rank; r++) {
        float factor[EXPAND_COLUMNS];
#pragma unroll
        for (u32 j = 0; j < EXPAND_COLUMNS; j++) {
            factor[j] = m[(u64)r * args.width + min(column + j, args.width - 1)];
        }
#pragma unroll
        for (u32 i = 0; i < EXPAND_ROWS; i++) {
            float value = h[(u64)min(first + i, args.rows - 1) * args.rank + r];
#pragma unroll
            for (u32 j = 0; j < EXPAND_COLUMNS; j++) {
                sum[i][j] += value * factor[j];
            }
        }
    }
#pragma unroll
    for (u32 i = 0; i < EXPAND_ROWS; i++) {
#pragma unroll
        for (u32 j = 0; j < EXPAND_COLUMNS; j++) {
            if (first + i < args.rows && column + j < args.width) {
                activation* target = y + args.offset + (u64)(first + i) * args.stride + column + j;
                store(target, load(target) + args.scale * sum[i][j]);
            }
        }
    }
}

// A block 32 columns, a warp every 32nd row; the warps' sums are added in their order.
#define OUTER_RANKS 16

extern "C" __global__ void __launch_bounds__(1024) lora_outer(const float* h, const activation* x, float* g, Args args) {
    __shared__ float part[32][33];
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 column = blockIdx.x * 32 + lane;
    bool present = column < args.width;
    x += args.offset + min(column, args.width - 1);
    for (u32 rank = 0; rank < args.rank; rank += OUTER_RANKS) {
        u32 count = min(args.rank - rank, (u32)OUTER_RANKS);
        float sum[OUTER_RANKS] = {};
        for (u32 row = warp; row < args.rows; row += 32) {
            float value = load(x + (u64)row * args.stride);
            const float* factors = h + (u64)row * args.rank + rank;
#pragma unroll
            for (u32 r = 0; r < OUTER_RANKS; r++) {
                if (r < count) {
                    sum[r] += factors[r] * value;
                }
            }
        }
#pragma unroll
        for (u32 r = 0; r < OUTER_RANKS; r++) {
            __syncthreads();
            part[warp][lane] = sum[r];
            __syncthreads();
            if (warp == 0 && present && r < count) {
                float total = 0.0f;
                for (u32 w = 0; w < 32; w++) {
                    total += part[w][lane];
                }
                g[(u64)(rank + r) * args.width + column] += args.scale * total;
            }
        }
    }
}
