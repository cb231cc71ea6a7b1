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

// ---- tensor cores, for 16-bit activations, at most 64 ranks and widths in eights. A factor in f32 is taken as the sum
// of two bf16: what is lost is 2⁻¹⁶ of it, less than an activation's own rounding.

#if ACTIVATION_BITS == 16

#define TILE 64u
#define PITCH (TILE + 8)
#define RANKS_MAX 64u

__device__ __forceinline__ void split(float x, bf16* high, bf16* low) {
    high->bits = to_bf16(x);
    low->bits = to_bf16(x - from_bf16(high->bits));
}

// 64 rows × 64 columns of activations, in the background; zeros outside.
__device__ __forceinline__ void fetch(bf16* tile, const bf16* x, u32 row, u32 column, const Args& args) {
#pragma unroll
    for (u32 i = 0; i < TILE * TILE / 8 / 128; i++) {
        u32 index = i * 128 + threadIdx.x;
        u32 r = index / 8, c = index % 8 * 8;
        bool present = row + r < args.rows && column + c < args.width;
        const bf16* from = present ? x + args.offset + (u64)(row + r) * args.stride + column + c : x;
        copy_async(tile + r * PITCH + c, from, present);
    }
}

// Where a part of an f32 matrix lies, and how much of it there is.
struct Part {
    const float* source;
    u32 stride;
    u32 rows;
    u32 columns;
};

// `rows` × `columns` of it, zeros where there is less.
__device__ __forceinline__ void fetch_split(bf16* high, bf16* low, const Part& part, u32 rows, u32 columns) {
    for (u32 i = threadIdx.x; i < rows * columns; i += 128) {
        u32 r = i / columns, c = i % columns;
        bool present = r < part.rows && c < part.columns;
        float value = present ? part.source[(u64)r * part.stride + c] : 0.0f;
        split(value, high + r * PITCH + c, low + r * PITCH + c);
    }
}

__device__ __forceinline__ u32 rest(u32 first, u32 all) {
    return first < all ? all - first : 0;
}

// A block 64 rows, all ranks.
extern "C" __global__ void __launch_bounds__(128)
    lora_dot_tensor(const activation* x, const float* m, float* h, Args args) {
    __shared__ __align__(16) bf16 tile[2][TILE * PITCH];
    __shared__ __align__(16) bf16 high[RANKS_MAX * PITCH];
    __shared__ __align__(16) bf16 low[RANKS_MAX * PITCH];
    u32 row = blockIdx.x * TILE, warp_row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
    u32 ranks = (args.rank + 15) / 16 * 16;
    float sum[RANKS_MAX / 8][4] = {};
    fetch(tile[0], x, row, 0, args);
    commit();
    u32 stage = 0;
    for (u32 n = 0; n < args.width; n += TILE, stage ^= 1) {
        // Everyone is done with the factor, and with the stage that is fetched next.
        __syncthreads();
        if (n + TILE < args.width) {
            fetch(tile[stage ^ 1], x, row, n + TILE, args);
        }
        commit();
        fetch_split(high, low, {m + n, args.width, args.rank, rest(n, args.width)}, ranks, TILE);
        wait_for<1>();
        __syncthreads();
#pragma unroll
        for (u32 d = 0; d < TILE; d += 16) {
            u32 a[4];
            fragment_left<PITCH>(a, tile[stage], warp_row, d);
#pragma unroll
            for (u32 g = 0; g < RANKS_MAX / 8; g += 2) {
                if (g * 8 < args.rank) {
                    u32 b[4];
                    fragment_right_transposed<PITCH>(b, high, g * 8, d);
                    mma_two(sum[g], sum[g + 1], a, b);
                    fragment_right_transposed<PITCH>(b, low, g * 8, d);
                    mma_two(sum[g], sum[g + 1], a, b);
                }
            }
        }
    }
#pragma unroll
    for (u32 g = 0; g < RANKS_MAX / 8; g++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 r = row + warp_row + lane / 4 + i / 2 * 8, rank = g * 8 + lane % 4 * 2 + i % 2;
            if (r < args.rows && rank < args.rank) {
                h[(u64)r * args.rank + rank] = sum[g][i];
            }
        }
    }
}

// A block 64 rows × 64 columns.
extern "C" __global__ void __launch_bounds__(128)
    lora_expand_tensor(const float* h, const float* m, activation* y, Args args) {
    __shared__ __align__(16) bf16 h_high[TILE * PITCH];
    __shared__ __align__(16) bf16 h_low[TILE * PITCH];
    __shared__ __align__(16) bf16 m_high[RANKS_MAX * PITCH];
    __shared__ __align__(16) bf16 m_low[RANKS_MAX * PITCH];
    u32 tiles = (args.width + TILE - 1) / TILE;
    u32 row = blockIdx.x / tiles * TILE, column = blockIdx.x % tiles * TILE;
    u32 warp_row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
    u32 ranks = (args.rank + 15) / 16 * 16;
    const float* rows = h + (u64)row * args.rank;
    fetch_split(h_high, h_low, {rows, args.rank, rest(row, args.rows), args.rank}, TILE, ranks);
    fetch_split(m_high, m_low, {m + column, args.width, args.rank, rest(column, args.width)}, ranks, TILE);
    __syncthreads();
    float sum[TILE / 8][4] = {};
    for (u32 d = 0; d < ranks; d += 16) {
        u32 a_high[4], a_low[4];
        fragment_left<PITCH>(a_high, h_high, warp_row, d);
        fragment_left<PITCH>(a_low, h_low, warp_row, d);
#pragma unroll
        for (u32 g = 0; g < TILE / 8; g += 2) {
            u32 b[4];
            fragment_right<PITCH>(b, m_high, d, g * 8);
            mma_two(sum[g], sum[g + 1], a_high, b);
            mma_two(sum[g], sum[g + 1], a_low, b);
            fragment_right<PITCH>(b, m_low, d, g * 8);
            mma_two(sum[g], sum[g + 1], a_high, b);
        }
    }
#pragma unroll
    for (u32 g = 0; g < TILE / 8; g++) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 r = row + warp_row + lane / 4 + half * 8, c = column + g * 8 + lane % 4 * 2;
            if (r < args.rows && c < args.width) {
                // Widths, strides and offsets are in eights: both columns are there, side by side.
                u32* target = (u32*)(y + args.offset + (u64)r * args.stride + c);
                u32 before = *target;
                *target = pack_bf16(from_bf16((u16)before) + args.scale * sum[g][2 * half],
                                    from_bf16((u16)(before >> 16)) + args.scale * sum[g][2 * half + 1]);
            }
        }
    }
}

// A block 64 columns, 32 ranks at a time; its warps take every fourth sixteen rows, and are added in their order.
#define OUTER_GROUPS 2u

extern "C" __global__ void __launch_bounds__(128)
    lora_outer_tensor(const float* h, const activation* x, float* g, Args args) {
    __shared__ __align__(16) bf16 tile[2][TILE * PITCH];
    __shared__ __align__(16) bf16 high[TILE * PITCH];
    __shared__ __align__(16) bf16 low[TILE * PITCH];
    __shared__ float total[OUTER_GROUPS * 16][TILE];
    u32 column = blockIdx.x * TILE, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (u32 rank = 0; rank < args.rank; rank += OUTER_GROUPS * 16) {
        float sum[OUTER_GROUPS][TILE / 8][4] = {};
        __syncthreads();
        fetch(tile[0], x, 0, column, args);
        commit();
        u32 stage = 0;
        for (u32 row = 0; row < args.rows; row += TILE, stage ^= 1) {
            __syncthreads();
            if (row + TILE < args.rows) {
                fetch(tile[stage ^ 1], x, row + TILE, column, args);
            }
            commit();
            Part part = {h + (u64)row * args.rank + rank, args.rank, rest(row, args.rows), rest(rank, args.rank)};
            fetch_split(high, low, part, TILE, OUTER_GROUPS * 16);
            wait_for<1>();
            __syncthreads();
            u32 a_high[OUTER_GROUPS][4], a_low[OUTER_GROUPS][4];
#pragma unroll
            for (u32 i = 0; i < OUTER_GROUPS; i++) {
                fragment_left_transposed<PITCH>(a_high[i], high, warp * 16, i * 16);
                fragment_left_transposed<PITCH>(a_low[i], low, warp * 16, i * 16);
            }
#pragma unroll
            for (u32 j = 0; j < TILE / 8; j += 2) {
                u32 b[4];
                fragment_right<PITCH>(b, tile[stage], warp * 16, j * 8);
#pragma unroll
                for (u32 i = 0; i < OUTER_GROUPS; i++) {
                    mma_two(sum[i][j], sum[i][j + 1], a_high[i], b);
                    mma_two(sum[i][j], sum[i][j + 1], a_low[i], b);
                }
            }
        }
        for (u32 turn = 0; turn < 4; turn++) {
            __syncthreads();
            if (warp == turn) {
#pragma unroll
                for (u32 i = 0; i < OUTER_GROUPS; i++) {
#pragma unroll
                    for (u32 j = 0; j < TILE / 8; j++) {
#pragma unroll
                        for (u32 e = 0; e < 4; e++) {
                            float* target = &total[i * 16 + lane / 4 + e / 2 * 8][j * 8 + lane % 4 * 2 + e % 2];
                            *target = turn == 0 ? sum[i][j][e] : *target + sum[i][j][e];
                        }
                    }
                }
            }
        }
        __syncthreads();
        for (u32 i = threadIdx.x; i < OUTER_GROUPS * 16 * TILE; i += 128) {
            u32 r = rank + i / TILE, c = column + i % TILE;
            if (r < args.rank && c < args.width) {
                g[(u64)r * args.width + c] += args.scale * total[i / TILE][i % TILE];
            }
        }
    }
}

#endif
