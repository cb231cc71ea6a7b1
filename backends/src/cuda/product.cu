// Own products, for devices without cuBLASLt: output = alpha·left·right + beta·output, then bias and activation.
//
//   product_f32         f32 in any layout
//   product_activation  activations in any layout
//   product_tensor_*    16-bit activations on tensor cores: left rows of depth; right rows of depth (nt), as a forward
//                       product with a weight [out, in] has them, or rows of columns (nn), as a backward one has them
//   product_nf4(_double)  few rows of activations with a weight [columns, depth] in NF4
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
    put(target, activated(x, args.kind));
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

// ---- few rows with a weight in NF4, decoded where it is multiplied: a block 16 columns, each of eight warps every
// eighth block of 64 of the depth, a lane 16 weights of two columns

#define NF4_COLUMNS 16u
#if ACTIVATION_BITS == 16
#define NF4_ROWS 32u
#else
#define NF4_ROWS 8u
#endif

struct Nf4Args {
    Args product;
    float offset;
};

struct SingleScale {
    const float* absmax;
    __device__ __forceinline__ float of(u32 block) const {
        return absmax[block];
    }
};

struct DoubleScale {
    const u8* codes;
    const float* nested_absmax;
    const float* map;
    float offset;
    __device__ __forceinline__ float of(u32 block) const {
        return nf4_scale(codes, nested_absmax, map, offset, block);
    }
};

// 16 weights from eight bytes; the first of a byte is its high nibble.
__device__ __forceinline__ void decode(u64 codes, float absmax, const float* values, float (&w)[16]) {
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        u32 byte = (u32)(codes >> (8 * i)) & 255;
        w[2 * i] = values[byte >> 4] * absmax;
        w[2 * i + 1] = values[byte & 15] * absmax;
    }
}

#if ACTIVATION_BITS == 16
// Sums of 32 rows and 16 columns on tensor cores. Which of a block's weights meet in one step is free, so long as it is
// the same on both sides: lane t of four takes elements 16t + 4·step to 16t + 4·step + 3.
struct FewRows {
    float sum[2][2][4];

    __device__ __forceinline__ void add(const bf16* x, u32 stride, u32 rows, const float (&w)[2][16]) {
        u32 own = threadIdx.x % 32 / 4;
        u32 b[2][4][2];
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
#pragma unroll
            for (u32 step = 0; step < 4; step++) {
                b[j][step][0] = pack_bf16(w[j][4 * step], w[j][4 * step + 1]);
                b[j][step][1] = pack_bf16(w[j][4 * step + 2], w[j][4 * step + 3]);
            }
        }
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            if (16 * half >= rows) {
                break;
            }
            u32 words[2][8];
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                u32 row = 16 * half + own + 8 * i;
                const uint4* from = (const uint4*)(x + (u64)row * stride);
                uint4 low = make_uint4(0, 0, 0, 0), high = low;
                if (row < rows) {
                    low = from[0], high = from[1];
                }
                words[i][0] = low.x, words[i][1] = low.y, words[i][2] = low.z, words[i][3] = low.w;
                words[i][4] = high.x, words[i][5] = high.y, words[i][6] = high.z, words[i][7] = high.w;
            }
#pragma unroll
            for (u32 step = 0; step < 4; step++) {
                u32 a[4] = {words[0][2 * step], words[1][2 * step], words[0][2 * step + 1], words[1][2 * step + 1]};
                mma(sum[half][0], a, b[0][step]);
                mma(sum[half][1], a, b[1][step]);
            }
        }
    }

    __device__ __forceinline__ void store_to(float (*partial)[NF4_COLUMNS]) const {
        u32 lane = threadIdx.x % 32;
#pragma unroll
        for (u32 i = 0; i < 16; i++) {
            u32 half = i / 8, j = i / 4 % 2, e = i % 4;
            partial[16 * half + lane / 4 + e / 2 * 8][8 * j + lane % 4 * 2 + e % 2] = sum[half][j][e];
        }
    }
};
#else
// Sums of eight rows and 16 columns; those of a lane are of its share of the depth.
struct FewRows {
    float sum[NF4_ROWS][2];

    __device__ __forceinline__ void add(const float* x, u32 stride, u32 rows, const float (&w)[2][16]) {
#pragma unroll
        for (u32 row = 0; row < NF4_ROWS; row++) {
            if (row >= rows) {
                break;
            }
            const float4* from = (const float4*)(x + (u64)row * stride);
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                float4 v = from[i];
#pragma unroll
                for (u32 j = 0; j < 2; j++) {
                    sum[row][j] += v.x * w[j][4 * i] + v.y * w[j][4 * i + 1] + v.z * w[j][4 * i + 2] + v.w * w[j][4 * i + 3];
                }
            }
        }
    }

    __device__ __forceinline__ void store_to(float (*partial)[NF4_COLUMNS]) const {
        u32 lane = threadIdx.x % 32;
#pragma unroll
        for (u32 row = 0; row < NF4_ROWS; row++) {
#pragma unroll
            for (u32 j = 0; j < 2; j++) {
                float x = sum[row][j];
                x += __shfl_xor_sync(ALL_LANES, x, 1);
                x += __shfl_xor_sync(ALL_LANES, x, 2);
                if (lane % 4 == 0) {
                    partial[row][8 * j + lane / 4] = x;
                }
            }
        }
    }
};
#endif

template <class Scale>
__device__ __forceinline__ void product_few_rows(const activation* left, const u8* packed, const Scale& scale,
                                                 activation* output, const activation* bias, const Args& args) {
    __shared__ float values[16];
    __shared__ float partial[8][NF4_ROWS][NF4_COLUMNS];
    if (threadIdx.x < 16) {
        values[threadIdx.x] = nf4_value(threadIdx.x);
    }
    __syncthreads();
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 first = blockIdx.x * NF4_COLUMNS, blocks = args.depth / 64;
    FewRows sums = {};
    for (u32 block = warp; block < blocks; block += 8) {
        float w[2][16];
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
            u32 column = first + lane / 4 + 8 * j;
            bool present = column < args.columns;
            u64 index = present ? (u64)column * blocks + block : 0;
            u64 codes = ((const u64*)packed)[index * 4 + lane % 4];
            decode(codes, present ? scale.of((u32)index) : 0.0f, values, w[j]);
        }
        sums.add(left + block * 64 + lane % 4 * 16, args.left_row, args.rows, w);
    }
    sums.store_to(partial[warp]);
    __syncthreads();
    for (u32 i = threadIdx.x; i < args.rows * NF4_COLUMNS; i += 256) {
        u32 row = i / NF4_COLUMNS, column = i % NF4_COLUMNS;
        float sum = 0.0f;
#pragma unroll
        for (u32 w = 0; w < 8; w++) {
            sum += partial[w][row][column];
        }
        if (first + column < args.columns) {
            finish(output, sum, row, first + column, bias, args);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256)
    product_nf4(const activation* left, const u8* packed, const float* absmax, activation* output,
                const activation* bias, Nf4Args args) {
    product_few_rows(left, packed, SingleScale{absmax}, output, bias, args.product);
}

extern "C" __global__ void __launch_bounds__(256)
    product_nf4_double(const activation* left, const u8* packed, const u8* codes, const float* nested_absmax,
                       const float* map, activation* output, const activation* bias, Nf4Args args) {
    DoubleScale scale = {codes, nested_absmax, map, args.offset};
    product_few_rows(left, packed, scale, output, bias, args.product);
}
