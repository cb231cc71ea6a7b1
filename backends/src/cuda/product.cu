// Own products, for devices without cuBLASLt: output = alpha·left·right + beta·output, then bias and activation.
//
//   product_f32         f32 in any layout
//   product_activation  activations in any layout
//   product_tensor_*    16-bit activations on tensor cores: left rows of depth; right rows of depth (nt), as a forward
//                       product with a weight [out, in] has them, or rows of columns (nn), as a backward one has them
//
// A block computes one tile of the output; blocks are numbered along the rows of tiles, then down, then by batch.

struct Args {
    u32 rows;
    u32 columns;
    u32 depth;
    u32 left_row;
    u32 left_depth;
    u32 right_depth;
    u32 right_column;
    u32 output_row;
    u32 left_batch;
    u32 right_batch;
    u32 output_batch;
    float alpha;
    float beta;
    u32 has_bias;
    // A gelu::Kind, or 3: none.
    u32 kind;
};

__device__ __forceinline__ float activate(float x, u32 kind) {
    switch (kind) {
        case 0:
            return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
        case 1:
            return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
        case 2:
            return x < 0.0f ? 0.0f : x;
        default:
            return x;
    }
}

__device__ __forceinline__ float fetch(const float* p) {
    return *p;
}

__device__ __forceinline__ void put(float* p, float x) {
    *p = x;
}

#if ACTIVATION_BITS == 16
__device__ __forceinline__ float fetch(const bf16* p) {
    return load(p);
}

__device__ __forceinline__ void put(bf16* p, float x) {
    store(p, x);
}
#endif

template <class T>
__device__ __forceinline__ void finish(T* output, float sum, u32 row, u32 column, const T* bias, const Args& args) {
    T* target = output + (u64)row * args.output_row + column;
    float x = args.alpha * sum;
    if (args.beta != 0.0f) {
        x += args.beta * fetch(target);
    }
    if (args.has_bias) {
        x += fetch(bias + column);
    }
    put(target, activate(x, args.kind));
}

// ---- plain: a tile of 64×64, 256 threads with 4×4 each, 16 of the depth at a time

#define TILE 64u
#define DEPTH 16u

template <class T>
__device__ __forceinline__ void product(const T* left, const T* right, T* output, const T* bias, const Args& args) {
    __shared__ float a[DEPTH][TILE + 1];
    __shared__ float b[DEPTH][TILE + 1];
    u32 tiles = (args.columns + TILE - 1) / TILE, downward = (args.rows + TILE - 1) / TILE;
    u32 batch = blockIdx.x / (tiles * downward), within = blockIdx.x % (tiles * downward);
    u32 row = within / tiles * TILE, column = within % tiles * TILE;
    left += (u64)batch * args.left_batch;
    right += (u64)batch * args.right_batch;
    output += (u64)batch * args.output_batch;
    u32 y = threadIdx.x / 16, x = threadIdx.x % 16;
    float sum[4][4] = {};
    for (u32 depth = 0; depth < args.depth; depth += DEPTH) {
        __syncthreads();
        for (u32 i = threadIdx.x; i < TILE * DEPTH; i += 256) {
            // Neighbouring threads read neighbours in memory, whichever way the matrix lies.
            u32 r = args.left_depth == 1 ? i / DEPTH : i % TILE, d = args.left_depth == 1 ? i % DEPTH : i / TILE;
            bool present = row + r < args.rows && depth + d < args.depth;
            u64 place = (u64)(row + r) * args.left_row + (u64)(depth + d) * args.left_depth;
            a[d][r] = present ? fetch(left + place) : 0.0f;
            u32 c = args.right_depth == 1 ? i / DEPTH : i % TILE, e = args.right_depth == 1 ? i % DEPTH : i / TILE;
            present = column + c < args.columns && depth + e < args.depth;
            place = (u64)(depth + e) * args.right_depth + (u64)(column + c) * args.right_column;
            b[e][c] = present ? fetch(right + place) : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (u32 d = 0; d < DEPTH; d++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    sum[i][j] += a[d][y + 16 * i] * b[d][x + 16 * j];
                }
            }
        }
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            u32 r = row + y + 16 * i, c = column + x + 16 * j;
            if (r < args.rows && c < args.columns) {
                finish(output, sum[i][j], r, c, bias, args);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(256)
    product_f32(const float* left, const float* right, float* output, const float* bias, Args args) {
    product(left, right, output, bias, args);
}

extern "C" __global__ void __launch_bounds__(256) product_activation(const activation* left, const activation* right,
                                                                     activation* output, const activation* bias,
                                                                     Args args) {
    product(left, right, output, bias, args);
}

// ---- tensor cores: a tile of 128×128, eight warps with 32×64 each, 32 of the depth at a time in three stages

#if ACTIVATION_BITS == 16

#define WIDE 128u
#define STEP 32u
#define STAGES 3u
// Rows lie 16 bytes further apart than they are long: see attention.cu.
#define DEPTH_PITCH (STEP + 8)
#define COLUMN_PITCH (WIDE + 8)
#define LEFT_ELEMENTS (WIDE * DEPTH_PITCH)

// Pieces of eight elements of a Rows × Columns tile; zeros outside the matrix.
template <u32 Rows, u32 Columns, u32 Pitch>
__device__ __forceinline__ void fetch_tile(bf16* tile, const bf16* source, u32 stride, u32 row, u32 rows, u32 column,
                                           u32 columns) {
    const u32 pieces = Columns / 8;
#pragma unroll
    for (u32 i = 0; i < Rows * pieces / 256; i++) {
        u32 index = i * 256 + threadIdx.x;
        u32 r = index / pieces, c = index % pieces * 8;
        bool present = row + r < rows && column + c < columns;
        const bf16* from = present ? source + (u64)(row + r) * stride + column + c : source;
        copy_async(tile + r * Pitch + c, from, present);
    }
}

template <bool RightRowsOfDepth>
__device__ __forceinline__ void product_tensor(const bf16* left, const bf16* right, bf16* output, const bf16* bias,
                                               const Args& args, bf16* memory) {
    const u32 right_elements = RightRowsOfDepth ? WIDE * DEPTH_PITCH : STEP * COLUMN_PITCH;
    const u32 stage_elements = LEFT_ELEMENTS + right_elements;
    u32 tiles = (args.columns + WIDE - 1) / WIDE;
    u32 row = blockIdx.x / tiles * WIDE, column = blockIdx.x % tiles * WIDE;
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 warp_row = warp % 4 * 32, warp_column = warp / 4 * 64;
    u32 steps = (args.depth + STEP - 1) / STEP;
    float sum[2][8][4] = {};
    auto fetch_stage = [&](u32 step) {
        if (step < steps) {
            bf16* a = memory + step % STAGES * stage_elements;
            fetch_tile<WIDE, STEP, DEPTH_PITCH>(a, left, args.left_row, row, args.rows, step * STEP, args.depth);
            bf16* b = a + LEFT_ELEMENTS;
            if (RightRowsOfDepth) {
                fetch_tile<WIDE, STEP, DEPTH_PITCH>(b, right, args.right_column, column, args.columns, step * STEP,
                                                    args.depth);
            } else {
                fetch_tile<STEP, WIDE, COLUMN_PITCH>(b, right, args.right_depth, step * STEP, args.depth, column,
                                                     args.columns);
            }
        }
        commit();
    };
    fetch_stage(0);
    fetch_stage(1);
    for (u32 step = 0; step < steps; step++) {
        wait_for<1>();
        // This stage is there for all, and all are done with the one that is fetched next.
        __syncthreads();
        fetch_stage(step + 2);
        const bf16* a = memory + step % STAGES * stage_elements;
        const bf16* b = a + LEFT_ELEMENTS;
#pragma unroll
        for (u32 depth = 0; depth < STEP; depth += 16) {
            u32 fragment[2][4];
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                fragment_left<DEPTH_PITCH>(fragment[i], a, warp_row + 16 * i, depth);
            }
#pragma unroll
            for (u32 j = 0; j < 8; j += 2) {
                u32 other[4];
                u32 first = warp_column + 8 * j;
                if (RightRowsOfDepth) {
                    fragment_right_transposed<DEPTH_PITCH>(other, b, first, depth);
                } else {
                    fragment_right<COLUMN_PITCH>(other, b, depth, first);
                }
#pragma unroll
                for (u32 i = 0; i < 2; i++) {
                    mma_two(sum[i][j], sum[i][j + 1], fragment[i], other);
                }
            }
        }
    }
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
#pragma unroll
        for (u32 j = 0; j < 8; j++) {
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                u32 r = row + warp_row + 16 * i + lane / 4 + e / 2 * 8;
                u32 c = column + warp_column + 8 * j + lane % 4 * 2 + e % 2;
                if (r < args.rows && c < args.columns) {
                    finish(output, sum[i][j][e], r, c, bias, args);
                }
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(256)
    product_tensor_nt(const activation* left, const activation* right, activation* output, const activation* bias,
                      Args args) {
    extern __shared__ float memory[];
    product_tensor<true>(left, right, output, bias, args, (bf16*)memory);
}

extern "C" __global__ void __launch_bounds__(256)
    product_tensor_nn(const activation* left, const activation* right, activation* output, const activation* bias,
                      Args args) {
    extern __shared__ float memory[];
    product_tensor<false>(left, right, output, bias, args, (bf16*)memory);
}

#endif
