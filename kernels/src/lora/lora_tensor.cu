
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

// Of a factor only single values are sure to be aligned: it may lie anywhere in the adapter.
__device__ __forceinline__ float2 pair(const float* p) {
    return make_float2(p[0], p[1]);
}

// Two values as the low and the high half of a register each, twice: rounded, and what the rounding left.
__device__ __forceinline__ void split_pair(float2 x, u32& high, u32& low) {
    high = pack_bf16(x.x, x.y);
    low = pack_bf16(x.x - from_bf16((u16)high), x.y - from_bf16((u16)(high >> 16)));
}

// Rows × 64 columns of activations to a warp's own tile, in the background; zeros outside.
template <u32 Rows>
__device__ __forceinline__ void fetch(bf16* tile, const bf16* x, u32 row, u32 column, const Args& args) {
    u32 lane = threadIdx.x % 32;
#pragma unroll
    for (u32 i = 0; i < Rows * TILE / 8 / 32; i++) {
        u32 index = i * 32 + lane;
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

#define WARPS 8u

// Sums of 16·Groups rows and 8·Columns columns of all warps of a block, into `total`: one warp after the other, so that
// the bits are the same in every run.
template <u32 Groups, u32 Columns>
__device__ __forceinline__ void add_over_warps(const float (&sum)[Groups][Columns][4], float* total) {
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (u32 turn = 0; turn < WARPS; turn++) {
        __syncthreads();
        if (warp == turn) {
#pragma unroll
            for (u32 i = 0; i < Groups; i++) {
#pragma unroll
                for (u32 j = 0; j < Columns; j++) {
#pragma unroll
                    for (u32 e = 0; e < 4; e++) {
                        u32 r = i * 16 + lane / 4 + e / 2 * 8, c = j * 8 + lane % 4 * 2 + e % 2;
                        float* target = total + r * 8 * Columns + c;
                        *target = turn == 0 ? sum[i][j][e] : *target + sum[i][j][e];
                    }
                }
            }
        }
    }
    __syncthreads();
}
#define DOT_ROWS 32u

// A block 32 rows, all ranks. Its warps take every eighth 64 columns, and are added in their order.
extern "C" __global__ void __launch_bounds__(256)
    lora_dot_tensor(const activation* x, const float* m, float* h, Args args) {
    extern __shared__ float memory[];
    const u32 stage_elements = DOT_ROWS * PITCH;
    u32 row = blockIdx.x * DOT_ROWS, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    bf16* tile = (bf16*)memory + warp * 2 * stage_elements;
    float sum[2][RANKS_MAX / 8][4] = {};
    u32 stage = 0;
    fetch<DOT_ROWS>(tile, x, row, warp * TILE, args);
    commit();
    for (u32 n = warp * TILE; n < args.width; n += WARPS * TILE, stage ^= 1) {
        __syncwarp();
        fetch<DOT_ROWS>(tile + (stage ^ 1) * stage_elements, x, row, n + WARPS * TILE, args);
        commit();
        wait_for<1>();
        __syncwarp();
#pragma unroll
        for (u32 d = 0; d < TILE; d += 16) {
            u32 a[2][4];
            fragment_left<PITCH>(a[0], tile + stage * stage_elements, 0, d);
            fragment_left<PITCH>(a[1], tile + stage * stage_elements, 16, d);
            u32 column = n + d + lane % 4 * 2;
#pragma unroll
            for (u32 g = 0; g < RANKS_MAX / 8; g++) {
                if (g * 8 < args.rank) {
                    // Widths are in eights: both columns of a pair are there, or neither.
                    const float* factor = m + (u64)(g * 8 + lane / 4) * args.width + column;
                    bool present = g * 8 + lane / 4 < args.rank;
                    float2 zero = make_float2(0.0f, 0.0f);
                    float2 first = present && column < args.width ? pair(factor) : zero;
                    float2 second = present && column + 8 < args.width ? pair(factor + 8) : zero;
                    u32 high[2], low[2];
                    split_pair(first, high[0], low[0]);
                    split_pair(second, high[1], low[1]);
                    mma(sum[0][g], a[0], high);
                    mma(sum[1][g], a[1], high);
                    mma(sum[0][g], a[0], low);
                    mma(sum[1][g], a[1], low);
                }
            }
        }
    }
    wait_for<0>();
    float* total = memory;
    add_over_warps(sum, total);
    for (u32 i = threadIdx.x; i < DOT_ROWS * args.rank; i += 256) {
        u32 r = i / args.rank, rank = i % args.rank;
        if (row + r < args.rows) {
            h[(u64)(row + r) * args.rank + rank] = total[r * RANKS_MAX + rank];
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
    // Widths, strides and offsets are in eights: both columns of a pair are there, side by side.
    u32* target[2];
    u32 before[TILE / 8][2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 r = row + warp_row + lane / 4 + half * 8;
        target[half] = (u32*)(y + args.offset + (u64)r * args.stride + column + lane % 4 * 2);
#pragma unroll
        for (u32 g = 0; g < TILE / 8; g++) {
            bool present = r < args.rows && column + g * 8 < args.width;
            before[g][half] = present ? target[half][g * 4] : 0;
        }
    }
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
            u32 r = row + warp_row + lane / 4 + half * 8;
            if (r < args.rows && column + g * 8 < args.width) {
                u32 old = before[g][half];
                target[half][g * 4] = pack_bf16(from_bf16((u16)old) + args.scale * sum[g][2 * half],
                                                from_bf16((u16)(old >> 16)) + args.scale * sum[g][2 * half + 1]);
            }
        }
    }
}

// A block 64 columns and a part of the rows, 32 ranks at a time. Its warps take every eighth 16 rows, and are added in
// their order. Where several blocks share columns, each leaves its sums, and the last to come adds them in order.
#define OUTER_GROUPS 2u
#define OUTER_RANKS_AT_ONCE (OUTER_GROUPS * 16)
#define OUTER_ROWS 16u
#define OUTER_STAGES 4u
#define H_PITCH (OUTER_RANKS_AT_ONCE + 8)

// Blocks that leave sums, at most (as in mod.rs), and turns of 32 ranks.
#define PARTS_MAX 264u
#define TURNS_MAX 2u
__device__ float outer_parts[TURNS_MAX][PARTS_MAX][OUTER_RANKS_AT_ONCE * TILE];
__device__ u32 outer_arrived[TURNS_MAX][PARTS_MAX];

// Whether this block is the last of `count` that share `tile`. What all of them left before can then be read.
__device__ __forceinline__ bool is_last(u32 turn, u32 tile, u32 count, u32* flag) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        *flag = atomicAdd(&outer_arrived[turn][tile], 1u) == count - 1;
        if (*flag) {
            outer_arrived[turn][tile] = 0;
        }
    }
    __syncthreads();
    __threadfence();
    return *flag != 0;
}

// Sixteen rows of h, a rank for each lane; zeros outside.
__device__ __forceinline__ void load_h(float (&value)[OUTER_ROWS], const float* h, u32 row, u32 rank, const Args& args) {
    u32 lane = threadIdx.x % 32;
#pragma unroll
    for (u32 i = 0; i < OUTER_ROWS; i++) {
        bool present = row + i < args.rows && rank + lane < args.rank;
        value[i] = present ? h[(u64)(row + i) * args.rank + rank + lane] : 0.0f;
    }
}

extern "C" __global__ void __launch_bounds__(256)
    lora_outer_tensor(const float* h, const activation* x, float* g, Args args) {
    extern __shared__ float memory[];
    const u32 stage_elements = OUTER_ROWS * PITCH, h_elements = OUTER_ROWS * H_PITCH;
    __shared__ u32 flag;
    u32 tiles = (args.width + TILE - 1) / TILE, shares = gridDim.x / tiles;
    u32 own = blockIdx.x / shares, share = blockIdx.x % shares;
    u32 column = own * TILE, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    bf16* tile = (bf16*)memory + warp * (OUTER_STAGES * stage_elements + 2 * h_elements);
    bf16 *high = tile + OUTER_STAGES * stage_elements, *low = high + h_elements;
    u32 stride = shares * WARPS * OUTER_ROWS;
    for (u32 rank = 0; rank < args.rank; rank += OUTER_RANKS_AT_ONCE) {
        float sum[OUTER_GROUPS][TILE / 8][4] = {};
        float next[OUTER_ROWS];
        u32 first = (share * WARPS + warp) * OUTER_ROWS;
        // The sums of the last ranks lie where the tiles do.
        __syncthreads();
#pragma unroll
        for (u32 i = 0; i + 1 < OUTER_STAGES; i++) {
            fetch<OUTER_ROWS>(tile + i * stage_elements, x, first + i * stride, column, args);
            commit();
        }
        load_h(next, h, first, rank, args);
        u32 stage = 0;
        for (u32 row = first; row < args.rows; row += stride, stage = (stage + 1) % OUTER_STAGES) {
            __syncwarp();
            u32 free = (stage + OUTER_STAGES - 1) % OUTER_STAGES;
            fetch<OUTER_ROWS>(tile + free * stage_elements, x, row + (OUTER_STAGES - 1) * stride, column, args);
            commit();
#pragma unroll
            for (u32 i = 0; i < OUTER_ROWS; i++) {
                split(next[i], high + i * H_PITCH + lane, low + i * H_PITCH + lane);
            }
            load_h(next, h, row + stride, rank, args);
            wait_for<OUTER_STAGES - 1>();
            __syncwarp();
            u32 a_high[OUTER_GROUPS][4], a_low[OUTER_GROUPS][4];
#pragma unroll
            for (u32 i = 0; i < OUTER_GROUPS; i++) {
                fragment_left_transposed<H_PITCH>(a_high[i], high, 0, i * 16);
                fragment_left_transposed<H_PITCH>(a_low[i], low, 0, i * 16);
            }
#pragma unroll
            for (u32 j = 0; j < TILE / 8; j += 2) {
                u32 b[4];
                fragment_right<PITCH>(b, tile + stage * stage_elements, 0, j * 8);
#pragma unroll
                for (u32 i = 0; i < OUTER_GROUPS; i++) {
                    if (rank + i * 16 < args.rank) {
                        mma_two(sum[i][j], sum[i][j + 1], a_high[i], b);
                        mma_two(sum[i][j], sum[i][j + 1], a_low[i], b);
                    }
                }
            }
        }
        wait_for<0>();
        float* total = memory;
        add_over_warps(sum, total);
        u32 turn_of_ranks = rank / OUTER_RANKS_AT_ONCE;
        if (shares > 1) {
            for (u32 i = threadIdx.x; i < OUTER_RANKS_AT_ONCE * TILE; i += 256) {
                outer_parts[turn_of_ranks][blockIdx.x][i] = total[i];
            }
            if (!is_last(turn_of_ranks, own, shares, &flag)) {
                continue;
            }
        }
        for (u32 i = threadIdx.x; i < OUTER_RANKS_AT_ONCE * TILE; i += 256) {
            float sum_of_parts = shares > 1 ? 0.0f : total[i];
            for (u32 part = 0; shares > 1 && part < shares; part++) {
                sum_of_parts += *(volatile float*)&outer_parts[turn_of_ranks][own * shares + part][i];
            }
            u32 r = rank + i / TILE, c = column + i % TILE;
            if (r < args.rank && c < args.width) {
                g[(u64)r * args.width + c] += args.scale * sum_of_parts;
            }
        }
    }
}

#endif
