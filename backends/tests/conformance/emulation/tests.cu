// Kernels with one mistake each, and a sound one: 7 in every element of `x`, of which a block has 128 and a thread two.
struct Args {
    u32 count;
};

__device__ __forceinline__ float* own(float* x) {
    return x + blockIdx.x * 128;
}

extern "C" __global__ void half_a_warp_shuffles(float* x, Args args) {
    if (threadIdx.x % 32 < 16) {
        x[0] = __shfl_xor_sync(ALL_LANES, x[0], 1);
    }
}

extern "C" __global__ void two_shuffles_in_one_warp(float* x, Args args) {
    if (threadIdx.x % 2 == 0) {
        x[0] = __shfl_xor_sync(ALL_LANES, x[0], 2);
    } else {
        x[1] = __shfl_xor_sync(ALL_LANES, x[1], 2);
    }
}

extern "C" __global__ void misaligned_matrix(float* x, Args args) {
    __shared__ __align__(16) float tile[256];
    u32 r[4];
    load_matrix_x4(r, tile + 1 + threadIdx.x % 32 * 4);
    x[0] = __uint_as_float(r[0]);
}

// Every thread takes what its neighbours have written.
__device__ __forceinline__ void exchange(float* x, float* tile, bool sound) {
    tile[threadIdx.x] = 7.0f;
    if (sound) {
        __syncthreads();
    }
    own(x)[threadIdx.x] = tile[(threadIdx.x + 1) % 64];
    own(x)[threadIdx.x + 64] = tile[(threadIdx.x + 63) % 64];
}

extern "C" __global__ void missing_barrier(float* x, Args args) {
    __shared__ float tile[64];
    exchange(x, tile, false);
}

extern "C" __global__ void all_sound(float* x, Args args) {
    extern __shared__ float memory[];
    exchange(x, memory, true);
    __syncthreads();
    copy_async(memory + threadIdx.x * 4, own(x) + threadIdx.x % 32 * 4, true);
    commit();
    wait_for<0>();
    own(x)[threadIdx.x % 32 * 4] = memory[threadIdx.x * 4];
}

extern "C" __global__ void unwritten_shared(float* x, Args args) {
    __shared__ float tile[64];
    for (u32 i = threadIdx.x; i < 128; i += 64) {
        own(x)[i] = tile[i % 64] == tile[i % 64] ? 7.0f : 0.0f;
    }
}

__device__ __forceinline__ void take_copied(float* x, float* tile) {
    own(x)[threadIdx.x] = tile[threadIdx.x * 4] + 7.0f;
    own(x)[threadIdx.x + 64] = tile[threadIdx.x * 4] + 7.0f;
}

extern "C" __global__ void missing_wait(float* x, Args args) {
    __shared__ __align__(16) float tile[256];
    copy_async(tile + threadIdx.x * 4, x, false);
    commit();
    take_copied(x, tile);
}

extern "C" __global__ void missing_commit(float* x, Args args) {
    __shared__ __align__(16) float tile[256];
    copy_async(tile + threadIdx.x * 4, x, false);
    wait_for<0>();
    take_copied(x, tile);
}

// x holds a [16, 16], b [16, 8] and gets their product; once through load_matrix_x4, transposed for b.
extern "C" __global__ void product_of_fragments(float* x, Args args) {
    __shared__ __align__(16) u16 a[16 * 16];
    __shared__ __align__(16) u16 b[16 * 16];
    u32 lane = threadIdx.x;
    for (u32 i = lane; i < 256; i += 32) {
        a[i] = to_bf16(x[i]);
        b[i] = i % 16 < 8 ? to_bf16(x[256 + i / 16 * 8 + i % 16]) : 0;
    }
    __syncthreads();
    u32 left[4], right[4];
    load_matrix_x4(left, a + lane % 16 * 16 + lane / 16 * 8);
    load_matrix_x4_transposed(right, b + lane % 16 * 16 + lane / 16 * 8);
    u32 fragment[2] = {right[0], right[1]};
    float d[4] = {};
    mma(d, left, fragment);
    for (u32 i = 0; i < 4; i++) {
        x[384 + (lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
    }
}
