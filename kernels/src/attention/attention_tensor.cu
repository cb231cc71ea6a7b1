
// ---- tensor cores: four warps, each with 16 rows of the tile. See `mma` for who holds what of a fragment.

#if ACTIVATION_BITS == 16

#define WARP_ROWS 16u

// Rows of a tile in shared memory lie 16 bytes further apart than they are long, so that the eight rows that one
// `load_matrix_x4` reads at once lie in different banks.
template <u32 Dim>
struct Tile {
    static const u32 PITCH = Dim + 8;
    static const u32 ELEMENTS = TILE * PITCH;
};

// Rows `first`.. of a matrix whose row 0 is at `source`, in the background; zeros from row `length` on.
template <u32 Dim, u32 Rows>
__device__ __forceinline__ void fetch(bf16* tile, const bf16* source, u32 stride, u32 first, u32 length) {
    const u32 pieces = Dim / 8;
#pragma unroll
    for (u32 i = 0; i < Rows * pieces / 128; i++) {
        u32 index = i * 128 + threadIdx.x;
        u32 row = index / pieces, piece = index % pieces;
        bool present = first + row < length;
        const bf16* from = source + (u64)(present ? first + row : 0) * stride + piece * 8;
        copy_async(tile + row * Tile<Dim>::PITCH + piece * 8, from, present);
    }
}

// s[16 rows × 8·Groups] = rows of `a` · (rows of `b`)ᵀ
template <u32 Dim, u32 Groups>
__device__ __forceinline__ void product_transposed(float (&s)[Groups][4], const bf16* a, u32 a_row, const bf16* b) {
#pragma unroll
    for (u32 g = 0; g < Groups; g++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            s[g][i] = 0.0f;
        }
    }
#pragma unroll
    for (u32 d = 0; d < Dim; d += 16) {
        u32 fragment[4];
        fragment_left<Tile<Dim>::PITCH>(fragment, a, a_row, d);
#pragma unroll
        for (u32 g = 0; g < Groups; g += 2) {
            u32 other[4];
            fragment_right_transposed<Tile<Dim>::PITCH>(other, b, g * 8, d);
            mma_two(s[g], s[g + 1], fragment, other);
        }
    }
}

// sum[16 rows × Dim] += p · (rows of `b`), p in the layout of a product, rounded to bf16
template <u32 Dim, u32 Groups>
__device__ __forceinline__ void add_product(float (&sum)[Dim / 8][4], const float (&p)[Groups][4], const bf16* b) {
#pragma unroll
    for (u32 g = 0; g < Groups; g += 2) {
        u32 fragment[4] = {pack_bf16(p[g][0], p[g][1]), pack_bf16(p[g][2], p[g][3]),
                           pack_bf16(p[g + 1][0], p[g + 1][1]), pack_bf16(p[g + 1][2], p[g + 1][3])};
#pragma unroll
        for (u32 d = 0; d < Dim / 8; d += 2) {
            u32 other[4];
            fragment_right<Tile<Dim>::PITCH>(other, b, g * 8, d * 8);
            mma_two(sum[d], sum[d + 1], fragment, other);
        }
    }
}

// A warp's 16 rows of sums, times `factors` of its two rows, to global memory by way of its rows of `tile`.
template <u32 Dim>
__device__ __forceinline__ void write(const float (&sum)[Dim / 8][4], const float (&factors)[2], bf16* tile,
                                      bf16* target, u32 stride, u32 present) {
    u32 warp_row = threadIdx.x / 32 * WARP_ROWS, lane = threadIdx.x % 32;
    bf16* own = tile + warp_row * Tile<Dim>::PITCH;
    __syncwarp();
#pragma unroll
    for (u32 d = 0; d < Dim / 8; d++) {
        u32 column = d * 8 + lane % 4 * 2;
        *(u32*)(own + lane / 4 * Tile<Dim>::PITCH + column) = pack_bf16(sum[d][0] * factors[0], sum[d][1] * factors[0]);
        *(u32*)(own + (lane / 4 + 8) * Tile<Dim>::PITCH + column) =
            pack_bf16(sum[d][2] * factors[1], sum[d][3] * factors[1]);
    }
    __syncwarp();
    const u32 pieces = Dim / 8;
#pragma unroll
    for (u32 i = 0; i < WARP_ROWS * pieces / 32; i++) {
        u32 row = (i * 32 + lane) / pieces, piece = (i * 32 + lane) % pieces;
        if (warp_row + row < present) {
            uint4 eight = *(const uint4*)(own + row * Tile<Dim>::PITCH + piece * 8);
            *(uint4*)(target + (u64)(warp_row + row) * stride + piece * 8) = eight;
        }
    }
}

template <u32 Dim>
__device__ __forceinline__ void forward_tensor(const bf16* qkv, const u32* cumulative_lengths, const u32* rows,
                                               bf16* out, float* log_sum_exp, const Args& args, bf16* memory) {
    const u32 groups = TILE / 8;
    bf16 *q = memory, *k = q + Tile<Dim>::ELEMENTS, *v = k + 2 * Tile<Dim>::ELEMENTS;
    Place at = place_of(blockIdx.x, args.heads, cumulative_lengths, args);
    if (at.first >= at.length) {
        return;
    }
    u32 lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * WARP_ROWS;
    u32 row[2] = {at.first + warp_row + lane / 4, at.first + warp_row + lane / 4 + 8};
    const bf16* base = qkv + (u64)at.start * args.stride;
    const bf16 *keys = base + args.key + at.kv_head * Dim, *values = base + args.value + at.kv_head * Dim;
    fetch<Dim, TILE>(q, base + args.query + at.head * Dim, args.stride, at.first, at.length);
    fetch<Dim, TILE>(k, keys, args.stride, 0, at.length);
    fetch<Dim, TILE>(v, values, args.stride, 0, at.length);
    commit();
    float sum[Dim / 8][4] = {};
    float most[2] = {MINUS_INFINITY, MINUS_INFINITY}, total[2] = {0.0f, 0.0f};
    float scale = args.scale * LOG2_E;
    u32 end = args.causal ? min(at.first + TILE, at.length) : at.length;
    u32 stage = 0;
    for (u32 key = 0; key < end; key += TILE, stage ^= 1) {
        // Everyone is done with the stage that is fetched next.
        __syncthreads();
        if (key + TILE < end) {
            u32 other = (stage ^ 1) * Tile<Dim>::ELEMENTS;
            fetch<Dim, TILE>(k + other, keys, args.stride, key + TILE, at.length);
            fetch<Dim, TILE>(v + other, values, args.stride, key + TILE, at.length);
        }
        commit();
        wait_for<1>();
        __syncthreads();
        float s[groups][4];
        product_transposed<Dim, groups>(s, q, warp_row, k + stage * Tile<Dim>::ELEMENTS);
        if (key + TILE > at.length || (args.causal && key + TILE > at.first)) {
#pragma unroll
            for (u32 g = 0; g < groups; g++) {
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    u32 column = key + g * 8 + lane % 4 * 2 + i % 2;
                    bool seen = column < at.length && (!args.causal || column <= row[i / 2]);
                    s[g][i] = seen ? s[g][i] : MINUS_INFINITY;
                }
            }
        }
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            float higher = most[half];
#pragma unroll
            for (u32 g = 0; g < groups; g++) {
                higher = fmaxf(higher, fmaxf(s[g][2 * half], s[g][2 * half + 1]));
            }
            higher = fmaxf(higher, __shfl_xor_sync(ALL_LANES, higher, 1));
            higher = fmaxf(higher, __shfl_xor_sync(ALL_LANES, higher, 2));
            float fade = fast_exp2((most[half] - higher) * scale);
            most[half] = higher;
            float shift = -higher * scale;
            float part = 0.0f;
#pragma unroll
            for (u32 g = 0; g < groups; g++) {
#pragma unroll
                for (u32 i = 2 * half; i < 2 * half + 2; i++) {
                    s[g][i] = fast_exp2(fmaf(s[g][i], scale, shift));
                    part += s[g][i];
                }
            }
            total[half] = total[half] * fade + part;
#pragma unroll
            for (u32 d = 0; d < Dim / 8; d++) {
                sum[d][2 * half] *= fade;
                sum[d][2 * half + 1] *= fade;
            }
        }
        if (args.dropout > 0.0f) {
#pragma unroll
            for (u32 g = 0; g < groups; g++) {
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    u32 column = key + g * 8 + lane % 4 * 2 + i % 2;
                    s[g][i] *= kept(args, rows, at.start + min(row[i / 2], at.length - 1), at.head, column);
                }
            }
        }
        add_product<Dim, groups>(sum, s, v + stage * Tile<Dim>::ELEMENTS);
    }
    float factors[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        total[half] += __shfl_xor_sync(ALL_LANES, total[half], 1);
        total[half] += __shfl_xor_sync(ALL_LANES, total[half], 2);
        factors[half] = 1.0f / total[half];
        if (lane % 4 == 0 && row[half] < at.length) {
            u64 place = (u64)(at.start + row[half]) * args.heads + at.head;
            log_sum_exp[place] = most[half] * args.scale + logf(total[half]);
        }
    }
    bf16* target = out + ((u64)(at.start + at.first) * args.heads + at.head) * Dim;
    write<Dim>(sum, factors, q, target, args.heads * Dim, at.length - at.first);
}

// Of one query: log Σ exp in powers of two, and Σ_d dout∘out.
struct Softmax {
    float log_sum;
    float along;
};

__device__ __forceinline__ Softmax softmax_of(const BackwardBuffers& b, const Place& at, u32 head, u32 query,
                                              const Args& args) {
    u64 place = (u64)(at.start + min(query, at.length - 1)) * args.heads + head;
    return {b.log_sum_exp[place] * LOG2_E, b.along[place]};
}

// Rows of keys or queries that the backward takes at a time, beside the 64 that a block owns.
template <u32 Dim>
struct Step {
    static const u32 ROWS_AT_ONCE = Dim > 64 ? 32 : 64;
    static const u32 ELEMENTS = ROWS_AT_ONCE * Tile<Dim>::PITCH;
};

template <u32 Dim>
__device__ __forceinline__ void backward_queries_tensor(const BackwardBuffers& b, const Place& at, const Args& args,
                                                        bf16* memory) {
    const u32 keys = Step<Dim>::ROWS_AT_ONCE, groups = keys / 8;
    bf16 *q = memory, *d_out = q + Tile<Dim>::ELEMENTS, *stages = d_out + Tile<Dim>::ELEMENTS;
    u32 lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * WARP_ROWS;
    const bf16* base = b.qkv + (u64)at.start * args.stride;
    u64 corner = ((u64)at.start * args.heads + at.head) * Dim;
    fetch<Dim, TILE>(q, base + args.query + at.head * Dim, args.stride, at.first, at.length);
    fetch<Dim, TILE>(d_out, b.dout + corner, args.heads * Dim, at.first, at.length);
    auto fetch_stage = [&](u32 key, u32 stage) {
        bf16* target = stages + stage * 2 * Step<Dim>::ELEMENTS;
        fetch<Dim, keys>(target, base + args.key + at.kv_head * Dim, args.stride, key, at.length);
        target += Step<Dim>::ELEMENTS;
        fetch<Dim, keys>(target, base + args.value + at.kv_head * Dim, args.stride, key, at.length);
    };
    fetch_stage(0, 0);
    commit();
    u32 row[2] = {at.first + warp_row + lane / 4, at.first + warp_row + lane / 4 + 8};
    Softmax own[2] = {softmax_of(b, at, at.head, row[0], args), softmax_of(b, at, at.head, row[1], args)};
    float sum[Dim / 8][4] = {};
    float scale = args.scale * LOG2_E;
    u32 end = args.causal ? min(at.first + TILE, at.length) : at.length;
    u32 stage = 0;
    for (u32 key = 0; key < end; key += keys, stage ^= 1) {
        // Everyone is done with the stage that is fetched next.
        __syncthreads();
        if (key + keys < end) {
            fetch_stage(key + keys, stage ^ 1);
        }
        commit();
        wait_for<1>();
        __syncthreads();
        const bf16 *k = stages + stage * 2 * Step<Dim>::ELEMENTS, *v = k + Step<Dim>::ELEMENTS;
        float s[groups][4], dp[groups][4];
        product_transposed<Dim, groups>(s, q, warp_row, k);
        product_transposed<Dim, groups>(dp, d_out, warp_row, v);
        bool masked = key + keys > at.length || (args.causal && key + keys > at.first);
#pragma unroll
        for (u32 g = 0; g < groups; g++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                u32 column = key + g * 8 + lane % 4 * 2 + i % 2;
                float p = fast_exp2(fmaf(s[g][i], scale, -own[i / 2].log_sum));
                if (args.dropout > 0.0f) {
                    dp[g][i] *= kept(args, b.rows, at.start + min(row[i / 2], at.length - 1), at.head, column);
                }
                s[g][i] = p * (dp[g][i] - own[i / 2].along) * args.scale;
                if (masked) {
                    bool seen = column < at.length && (!args.causal || column <= row[i / 2]);
                    s[g][i] = seen ? s[g][i] : 0.0f;
                }
            }
        }
        add_product<Dim, groups>(sum, s, k);
    }
    bf16* target = b.dqkv + (u64)(at.start + at.first) * args.stride + args.query + at.head * Dim;
    float factors[2] = {1.0f, 1.0f};
    // Other warps may still read their rows of q, not this one's.
    write<Dim>(sum, factors, q, target, args.stride, at.length - at.first);
}

template <u32 Dim>
__device__ __forceinline__ void backward_keys_tensor(const BackwardBuffers& b, const Place& at, const Args& args,
                                                     bf16* memory) {
    const u32 queries = Step<Dim>::ROWS_AT_ONCE, groups = queries / 8;
    bf16 *k = memory, *v = k + Tile<Dim>::ELEMENTS, *stages = v + Tile<Dim>::ELEMENTS;
    Softmax* softmax = (Softmax*)(stages + 4 * Step<Dim>::ELEMENTS);
    u32 lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * WARP_ROWS, group = args.heads / args.kv_heads;
    const bf16* base = b.qkv + (u64)at.start * args.stride;
    fetch<Dim, TILE>(k, base + args.key + at.head * Dim, args.stride, at.first, at.length);
    fetch<Dim, TILE>(v, base + args.value + at.head * Dim, args.stride, at.first, at.length);
    // Steps run over the queries of one head, then of the next of the group.
    u32 first = args.causal ? at.first : 0;
    u32 steps_a_head = (at.length - first + queries - 1) / queries, steps = steps_a_head * group;
    auto fetch_stage = [&](u32 step) {
        u32 head = at.head * group + step / steps_a_head, query = first + step % steps_a_head * queries;
        bf16* target = stages + step % 2 * 2 * Step<Dim>::ELEMENTS;
        fetch<Dim, queries>(target, base + args.query + head * Dim, args.stride, query, at.length);
        target += Step<Dim>::ELEMENTS;
        u64 corner = ((u64)at.start * args.heads + head) * Dim;
        fetch<Dim, queries>(target, b.dout + corner, args.heads * Dim, query, at.length);
        if (threadIdx.x < queries) {
            softmax[step % 2 * queries + threadIdx.x] = softmax_of(b, at, head, query + threadIdx.x, args);
        }
    };
    fetch_stage(0);
    commit();
    float sum_k[Dim / 8][4] = {}, sum_v[Dim / 8][4] = {};
    float scale = args.scale * LOG2_E;
    for (u32 step = 0; step < steps; step++) {
        u32 head = at.head * group + step / steps_a_head, query = first + step % steps_a_head * queries;
        // Everyone is done with the stage that is fetched next.
        __syncthreads();
        if (step + 1 < steps) {
            fetch_stage(step + 1);
        }
        commit();
        wait_for<1>();
        __syncthreads();
        const bf16 *q = stages + step % 2 * 2 * Step<Dim>::ELEMENTS, *d_out = q + Step<Dim>::ELEMENTS;
        // Rows are keys, columns are queries.
        float s[groups][4], dp[groups][4];
        product_transposed<Dim, groups>(s, k, warp_row, q);
        product_transposed<Dim, groups>(dp, v, warp_row, d_out);
        bool masked = query + queries > at.length || at.first + TILE > at.length;
        masked = masked || (args.causal && query < at.first + TILE);
#pragma unroll
        for (u32 g = 0; g < groups; g++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                u32 column = g * 8 + lane % 4 * 2 + i % 2;
                u32 key = at.first + warp_row + lane / 4 + 8 * (i / 2);
                Softmax other = softmax[step % 2 * queries + column];
                float p = fast_exp2(fmaf(s[g][i], scale, -other.log_sum));
                if (masked) {
                    bool seen = query + column < at.length && key < at.length;
                    p = seen && (!args.causal || key <= query + column) ? p : 0.0f;
                }
                float factor = 1.0f;
                if (args.dropout > 0.0f) {
                    factor = kept(args, b.rows, at.start + min(query + column, at.length - 1), head, key);
                }
                dp[g][i] = p * (dp[g][i] * factor - other.along) * args.scale;
                s[g][i] = p * factor;
            }
        }
        add_product<Dim, groups>(sum_v, s, d_out);
        add_product<Dim, groups>(sum_k, dp, q);
    }
    bf16* target = b.dqkv + (u64)(at.start + at.first) * args.stride + at.head * Dim;
    float factors[2] = {1.0f, 1.0f};
    write<Dim>(sum_k, factors, k, target + args.key, args.stride, at.length - at.first);
    write<Dim>(sum_v, factors, v, target + args.value, args.stride, at.length - at.first);
}

template <u32 Dim>
__device__ __forceinline__ void backward_tensor(const BackwardBuffers& b, const u32* cumulative_lengths,
                                                const Args& args, bf16* memory) {
    u32 queries = query_blocks(args);
    bool takes_queries = blockIdx.x < queries;
    u32 block = takes_queries ? blockIdx.x : blockIdx.x - queries;
    Place at = place_of(block, takes_queries ? args.heads : args.kv_heads, cumulative_lengths, args);
    if (at.first >= at.length) {
        return;
    }
    if (takes_queries) {
        backward_queries_tensor<Dim>(b, at, args, memory);
    } else {
        backward_keys_tensor<Dim>(b, at, args, memory);
    }
}

// Four blocks of the forward (three with large heads) and two of the backward fit a multiprocessor with all the
// registers that they ask for. q is read from shared memory for each tile of keys: kept in registers it would cost one.
#define ENTRIES(DIM, BLOCKS)                                                                                           \
    extern "C" __global__ void __launch_bounds__(128, BLOCKS)                                                          \
        attention_forward_tensor_##DIM(const activation* qkv, const u32* cumulative_lengths, const u32* rows,          \
                                       activation* out, float* log_sum_exp, Args args) {                               \
        extern __shared__ float memory[];                                                                              \
        forward_tensor<DIM>(qkv, cumulative_lengths, rows, out, log_sum_exp, args, (bf16*)memory);                     \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128, 2)                                                               \
        attention_backward_tensor_##DIM(const activation* dout, const activation* qkv, const float* along,             \
                                        const float* log_sum_exp, const u32* cumulative_lengths, const u32* rows,      \
                                        activation* dqkv, Args args) {                                                 \
        extern __shared__ float memory[];                                                                              \
        BackwardBuffers b = {dout, qkv, along, log_sum_exp, rows, dqkv};                                               \
        backward_tensor<DIM>(b, cumulative_lengths, args, (bf16*)memory);                                              \
    }

ENTRIES(32, 4)
ENTRIES(64, 4)
ENTRIES(128, 3)

#endif
