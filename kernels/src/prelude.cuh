// What every CUDA source of Motley can use. No header of the toolkit is needed, so that NVRTC alone compiles it.
//
// Set by whoever compiles: ACTIVATION_BITS, 32 (f32) or 16 (bf16). MOTLEY_EMULATED, where the emulation on the
// processor stands before this file and brings the functions marked so below.
//
//   activation            what the device keeps activations in
//   load(p), store(p, x)  one activation from and to f32; load8, store8: eight
//   warp_sum, warp_max    over the 32 lanes, the same result in each
//   block_sum, block_max  over all threads of a block; `scratch` holds 32 floats
//   mma                   d += a·b on tensor cores, fragments as in PTX mma.m16n8k16 (bf16 in, f32 sums)
//   activated             forward of kernel gelu, which products apply too; normal_share for its gradient
//   nf4_value, nf4_scale  of the format of kernel nf4
//   fast_exp2, fast_reciprocal, load_matrix_x4(_transposed), copy_async, commit, wait_for; fragment_*, mma_two
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct bf16 {
    u16 bits;
};

#ifndef MOTLEY_EMULATED

// 2ˣ to 2 ulp, 0 where it is denormal.
__device__ __forceinline__ float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1/x to 1 ulp, 0 where it is denormal.
__device__ __forceinline__ float fast_reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#if __CUDA_ARCH__ >= 800
__device__ __forceinline__ u16 to_bf16(float x) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

// Two values in one register, the first in the low half.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
    u32 bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}

// d += a·b: a 16×16 and b 16×8 in bf16, d 16×8 in f32. With g = lane/4 and t = lane%4, a lane holds
//   a[0]: (g, 2t..2t+1)  a[1]: (g+8, 2t..)  a[2]: (g, 2t+8..)  a[3]: (g+8, 2t+8..)      rows, columns
//   b[0]: (2t..2t+1, g)  b[1]: (2t+8.., g)                                               rows (depth), column
//   d[0], d[1]: (g, 2t..2t+1)   d[2], d[3]: (g+8, 2t..2t+1)
__device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// 16 bytes from global to shared memory, in the background; zeros if not `present`.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool present) {
    u32 target = (u32)__cvta_generic_to_shared(shared);
    int bytes = present ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(global), "r"(bytes));
}

// Closes a group of copies.
__device__ __forceinline__ void commit() {
    asm volatile("cp.async.commit_group;");
}

// Waits until at most `Pending` groups are under way.
template <int Pending>
__device__ __forceinline__ void wait_for() {
    asm volatile("cp.async.wait_group %0;" ::"n"(Pending));
}
#endif

// Four 8×8 matrices of 16-bit elements; lane l names the start of row l%8 of matrix l/8 (16 bytes). Of each matrix a
// lane gets (row lane/4, columns 2·(lane%4)..), or of its transpose.
__device__ __forceinline__ void load_matrix_x4(u32 (&r)[4], const void* row) {
    u32 address = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}

__device__ __forceinline__ void load_matrix_x4_transposed(u32 (&r)[4], const void* row) {
    u32 address = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}

#endif
// The emulation brings fast_exp2, fast_reciprocal, to_bf16, pack_bf16, mma, load_matrix_x4(_transposed), copy_async,
// commit and wait_for.

__device__ __forceinline__ float from_bf16(u16 bits) {
    return __uint_as_float((u32)bits << 16);
}

#if ACTIVATION_BITS == 32
typedef float activation;
__device__ __forceinline__ float load(const float* p) {
    return *p;
}
__device__ __forceinline__ void store(float* p, float x) {
    *p = x;
}
#else
typedef bf16 activation;
__device__ __forceinline__ float load(const bf16* p) {
    return from_bf16(p->bits);
}
__device__ __forceinline__ void store(bf16* p, float x) {
    p->bits = to_bf16(x);
}
#endif

// Eight values in a row, the first at a multiple of 16 bytes.
__device__ __forceinline__ void load8(const float* p, float (&x)[8]) {
    float4 low = ((const float4*)p)[0], high = ((const float4*)p)[1];
    x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
    x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
}

#if ACTIVATION_BITS == 16
__device__ __forceinline__ void load8(const bf16* p, float (&x)[8]) {
    uint4 bits = *(const uint4*)p;
    u32 words[4] = {bits.x, bits.y, bits.z, bits.w};
    for (int i = 0; i < 4; i++) {
        x[2 * i] = from_bf16((u16)words[i]);
        x[2 * i + 1] = from_bf16((u16)(words[i] >> 16));
    }
}
#endif

__device__ __forceinline__ void store8(activation* p, const float (&x)[8]) {
#if ACTIVATION_BITS == 32
    ((float4*)p)[0] = make_float4(x[0], x[1], x[2], x[3]);
    ((float4*)p)[1] = make_float4(x[4], x[5], x[6], x[7]);
#else
    *(uint4*)p = make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7]));
#endif
}

// Whether rows of `stride` activations from `p` on all start where `load8` can.
__device__ __forceinline__ bool rows_of_eights(const void* p, u32 stride) {
    return stride % 8 == 0 && (u64)p % 16 == 0;
}

#if ACTIVATION_BITS == 16
// Fragments from a tile in shared memory with rows of Pitch elements. A pitch of 8 more than a multiple of 64 puts the
// eight rows that one load reads at once into different banks.

// `a`: 16 rows from `row` on, 16 columns from `column` on.
template <u32 Pitch>
__device__ __forceinline__ void fragment_left(u32 (&a)[4], const bf16* tile, u32 row, u32 column) {
    u32 lane = threadIdx.x % 32;
    load_matrix_x4(a, tile + (row + lane % 16) * Pitch + column + lane / 16 * 8);
}

// `a` of the transpose of 16 rows from `row` on, 16 columns from `column` on.
template <u32 Pitch>
__device__ __forceinline__ void fragment_left_transposed(u32 (&a)[4], const bf16* tile, u32 row, u32 column) {
    u32 lane = threadIdx.x % 32;
    load_matrix_x4_transposed(a, tile + (row + lane / 16 * 8 + lane % 8) * Pitch + column + lane / 8 % 2 * 8);
}

// Two `b` side by side: depth is 16 rows from `row` on, 16 columns from `column` on.
template <u32 Pitch>
__device__ __forceinline__ void fragment_right(u32 (&b)[4], const bf16* tile, u32 row, u32 column) {
    u32 lane = threadIdx.x % 32;
    load_matrix_x4_transposed(b, tile + (row + lane % 16) * Pitch + column + lane / 16 * 8);
}

// Two `b` of the transpose: 16 rows from `row` on are its columns, its depth is 16 columns from `column` on.
template <u32 Pitch>
__device__ __forceinline__ void fragment_right_transposed(u32 (&b)[4], const bf16* tile, u32 row, u32 column) {
    u32 lane = threadIdx.x % 32;
    load_matrix_x4(b, tile + (row + lane / 16 * 8 + lane % 8) * Pitch + column + lane / 8 % 2 * 8);
}

// d0 += a·(first of b), d1 += a·(second of b)
__device__ __forceinline__ void mma_two(float (&d0)[4], float (&d1)[4], const u32 (&a)[4], const u32 (&b)[4]) {
    u32 b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
    mma(d0, a, b0);
    mma(d1, a, b1);
}
#endif

#define ALL_LANES 0xffffffffu
// Of f32; without a header.
#define MINUS_INFINITY __int_as_float(0xff800000)

__device__ __forceinline__ float warp_sum(float x) {
    for (int distance = 16; distance > 0; distance /= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, distance);
    }
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int distance = 16; distance > 0; distance /= 2) {
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, distance));
    }
    return x;
}

// Every thread of the block calls it; a block has at most 32 whole warps.
__device__ __forceinline__ float block_sum(float x, float* scratch) {
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        scratch[threadIdx.x / 32] = x;
    }
    __syncthreads();
    float total = 0.0f;
    for (u32 warp = 0; warp < blockDim.x / 32; warp++) {
        total += scratch[warp];
    }
    return total;
}

__device__ __forceinline__ float block_max(float x, float* scratch) {
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        scratch[threadIdx.x / 32] = x;
    }
    __syncthreads();
    float largest = scratch[0];
    for (u32 warp = 1; warp < blockDim.x / 32; warp++) {
        largest = fmaxf(largest, scratch[warp]);
    }
    return largest;
}

// Φ(x) = (1 + erf(x/√2))/2, the share of a normal distribution below x.
__device__ __forceinline__ float normal_share(float x) {
#if ACTIVATION_BITS == 32
    return 0.5f * (1.0f + erff(x * 0.70710678118654752f));
#else
    // log₂(Φ(x)/Φ(−x)) = x·r(x²): r as a polynomial for |x| < 6 (weighted least squares after Lawson), by which Φ
    // comes out to 1.3e-7, and to 2.4e-3 of itself where it is smaller: better than 1 + erf, at a third of its
    // instructions, which are more than memory leaves time for. A line beyond, where Φ(x) or Φ(−x) is below 1e-9.
    float s = fminf(x * x, 36.0f);
    float r = fmaf(-6.040758865e-11f, s, 7.974885641e-9f);
    r = fmaf(r, s, -4.254192731e-7f);
    r = fmaf(r, s, 1.1651399290e-5f);
    r = fmaf(r, s, -1.594002824e-4f);
    r = fmaf(r, s, -9.731492901e-5f);
    r = fmaf(r, s, 0.1048407257f);
    r = fmaf(r, s, 2.3022072315f);
    return fast_reciprocal(1.0f + fast_exp2(-x * r));
#endif
}

// Kinds of kernel gelu.
#define GELU_EXACT 0
#define GELU_TANH 1
#define RELU 2

__device__ __forceinline__ float tanh_argument(float x) {
    return 0.79788456080286536f * (x + 0.044715f * x * x * x);
}

// x itself if it is of no kind.
__device__ __forceinline__ float activated(float x, u32 kind) {
    switch (kind) {
        case GELU_EXACT:
            return x * normal_share(x);
        case GELU_TANH:
#if ACTIVATION_BITS == 32
            return 0.5f * x * (1.0f + tanhf(tanh_argument(x)));
#else
            // The same, as (1 + tanh u)/2 = 1/(1 + exp(−2u)).
            return x * fast_reciprocal(1.0f + __expf(-2.0f * tanh_argument(x)));
#endif
        case RELU:
            // NaN passes: it is not below 0.
            return x < 0.0f ? 0.0f : x;
        default:
            return x;
    }
}

// What a code of NF4 stands for; its format is that of kernel nf4.
__device__ __forceinline__ float nf4_value(u32 code) {
    const float values[16] = {-1.0f,         -0.6961928f,  -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f,
                              -0.091050036f, 0.0f,         0.0795803f,   0.1609302f,  0.2461123f,   0.33791524f,
                              0.44070983f,   0.562617f,    0.72295684f,  1.0f};
    return values[code];
}

// Scale of a block whose scales are quantized too. Rounded after the product, as the specification does: no fused
// multiply-add.
__device__ __forceinline__ float nf4_scale(const u8* codes, const float* nested_absmax, const float* map, float offset,
                                           u32 block) {
    return __fadd_rn(__fmul_rn(map[codes[block]], nested_absmax[block / 256]), offset);
}

// Philox4x32-10 (Salmon et al. 2011).
__device__ __forceinline__ void philox(u32 (&counter)[4], u32 key0, u32 key1) {
    for (int round = 0; round < 10; round++) {
        u64 first = (u64)0xd2511f53u * counter[0];
        u64 second = (u64)0xcd9e8d57u * counter[2];
        u32 b = counter[1], d = counter[3];
        counter[0] = (u32)(second >> 32) ^ b ^ key0;
        counter[1] = (u32)second;
        counter[2] = (u32)(first >> 32) ^ d ^ key1;
        counter[3] = (u32)first;
        key0 += 0x9e3779b9u;
        key1 += 0xbb67ae85u;
    }
}

// Words below this are dropped; p is a multiple of 2⁻²⁴ below 1 in effect, so the product is exact.
__device__ __forceinline__ u32 dropout_threshold(float probability) {
    return (u32)((double)probability * 4294967296.0);
}
