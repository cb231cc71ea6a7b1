// CUDA on the processor: what stands before the prelude and a kernel's source where g++ compiles them. It brings the
// words of the language, the built-in functions that Motley's kernels use, and those that the prelude leaves to it.
// Threads are contexts of runtime.cpp; each function below that needs other threads says so by `line`, the place of
// its call, so that a warp that comes apart is reported and does not hang.
#include <math.h>
#include <stddef.h>
#include <string.h>

#include <tuple>
#include <type_traits>
#include <utility>

#define MOTLEY_EMULATED 1
#define __CUDA_ARCH__ 800
// Left to be seen where the names of kernels are looked for.
#ifndef MOTLEY_NAMES
#define __global__
#endif
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// A source's shared memory lies in a section of its name, which the runtime fills with NaN before each block.
#define MOTLEY_JOIN(a, b) a##b
#define MOTLEY_NAME(a, b) MOTLEY_JOIN(a, b)
#define MOTLEY_TEXT(a) #a
#define MOTLEY_SECTION(source) MOTLEY_TEXT(motley_shared_##source)
#define MOTLEY_SECTION_OF(source) MOTLEY_SECTION(source)
#define __shared__ static __attribute__((section(MOTLEY_SECTION_OF(MOTLEY_SOURCE))))

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct uint3 { unsigned x, y, z; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(4) ushort2 { unsigned short x, y; };
struct alignas(8) ushort4 { unsigned short x, y, z, w; };
struct alignas(4) uchar4 { unsigned char x, y, z, w; };

static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline int2 make_int2(int x, int y) { return {x, y}; }
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline ushort2 make_ushort2(unsigned short x, unsigned short y) { return {x, y}; }

// Of runtime.cpp.
extern uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulated {
// Shared memory whose size comes with the launch.
extern unsigned char* dynamic_shared;

// Waits for all threads of the block that have not ended.
void barrier(int line);

// Waits for all lanes of the warp; the last to come calls `complete` with what each lane brought.
void collective(const char* operation, int line, void* record, void (*complete)(void* const* records));

// The background copies of a thread: they happen when they are waited for, and what they will overwrite is NaN until
// then, so that a wait that is missing shows.
void begin_copy(void* shared, const void* global, bool present);
void close_group();
void wait_for_groups(int pending);

[[noreturn]] void fail(const char* problem, int line);

// Runs `body(context)` in every thread of the grid; null, or what went wrong.
const char* run(unsigned blocks, unsigned threads, unsigned shared_bytes, unsigned char* shared,
                unsigned char* shared_end, void (*body)(void*), void* context);

template <typename To, typename From>
static inline To bits_of(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

template <typename T>
struct Shuffle {
    T value, result;
    unsigned source;
};

template <typename T>
static inline T shuffle(T value, unsigned source, int line) {
    Shuffle<T> record = {value, value, source};
    collective("a shuffle", line, &record, [](void* const* records) {
        for (int lane = 0; lane < 32; lane++) {
            Shuffle<T>* record = (Shuffle<T>*)records[lane];
            record->result = ((Shuffle<T>*)records[record->source])->value;
        }
    });
    return record.result;
}

static inline unsigned ballot(bool vote, int line) {
    struct Vote {
        bool vote;
        unsigned result;
    } record = {vote, 0};
    collective("a vote", line, &record, [](void* const* records) {
        unsigned all = 0;
        for (int lane = 0; lane < 32; lane++) {
            all |= (unsigned)((Vote*)records[lane])->vote << lane;
        }
        for (int lane = 0; lane < 32; lane++) {
            ((Vote*)records[lane])->result = all;
        }
    });
    return record.result;
}

static inline void all_lanes(unsigned mask, int line) {
    if (mask != ~0u) {
        fail("the emulation knows warp functions of all 32 lanes alone", line);
    }
}

static inline unsigned lane() {
    return threadIdx.x % 32;
}
}  // namespace emulated

#define LINE int line = __builtin_LINE()

static inline void __syncthreads(LINE) {
    emulated::barrier(line);
}

static inline void __syncwarp(unsigned mask = ~0u, LINE) {
    emulated::all_lanes(mask, line);
    emulated::collective("__syncwarp", line, nullptr, [](void* const*) {});
}

template <typename T>
static inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, LINE) {
    emulated::all_lanes(mask, line);
    unsigned lane = emulated::lane();
    return emulated::shuffle(value, lane / width * width + (unsigned)source % width, line);
}

template <typename T>
static inline T __shfl_xor_sync(unsigned mask, T value, int distance, int width = 32, LINE) {
    emulated::all_lanes(mask, line);
    unsigned lane = emulated::lane(), source = lane ^ (unsigned)distance;
    return emulated::shuffle(value, source / width > lane / width ? lane : source % 32, line);
}

template <typename T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32, LINE) {
    emulated::all_lanes(mask, line);
    unsigned lane = emulated::lane();
    return emulated::shuffle(value, lane % width + distance < (unsigned)width ? lane + distance : lane, line);
}

template <typename T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32, LINE) {
    emulated::all_lanes(mask, line);
    unsigned lane = emulated::lane();
    return emulated::shuffle(value, lane % width >= distance ? lane - distance : lane, line);
}

static inline unsigned __ballot_sync(unsigned mask, bool vote, LINE) {
    emulated::all_lanes(mask, line);
    return emulated::ballot(vote, line);
}

static inline bool __all_sync(unsigned mask, bool vote, LINE) {
    emulated::all_lanes(mask, line);
    return emulated::ballot(vote, line) == ~0u;
}

static inline bool __any_sync(unsigned mask, bool vote, LINE) {
    emulated::all_lanes(mask, line);
    return emulated::ballot(vote, line) != 0;
}

static inline float __uint_as_float(unsigned bits) { return emulated::bits_of<float>(bits); }
static inline float __int_as_float(int bits) { return emulated::bits_of<float>(bits); }
static inline unsigned __float_as_uint(float value) { return emulated::bits_of<unsigned>(value); }
static inline int __float_as_int(float value) { return emulated::bits_of<int>(value); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(unsigned x) { return x == 0 ? 32 : __builtin_clz(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __fdividef(float x, float y) { return x / y; }
static inline float __fdiv_rn(float x, float y) { return x / y; }
// Through volatile, so that no sum and product become one operation.
static inline float __fmul_rn(float x, float y) { volatile float r = x * y; return r; }
static inline float __fadd_rn(float x, float y) { volatile float r = x + y; return r; }
static inline float __fsub_rn(float x, float y) { volatile float r = x - y; return r; }
static inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
// The C library has functions of these names that are not for us.
#define __expf(x) expf(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __powf(x, y) powf(x, y)
static inline float __saturatef(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }
static inline int __float2int_rn(float x) { return (int)nearbyintf(x); }
static inline int __float2int_rd(float x) { return (int)floorf(x); }
template <typename T>
static inline T __ldg(const T* p) { return *p; }
template <typename T>
static inline T __ldcs(const T* p) { return *p; }
template <typename T>
static inline void __stcs(T* p, T value) { *p = value; }
template <typename T>
static inline T min(T a, T b) { return b < a ? b : a; }
template <typename T>
static inline T max(T a, T b) { return a < b ? b : a; }

// Blocks run one after another here.
static inline unsigned atomicAdd(unsigned* p, unsigned x) {
    unsigned before = *p;
    *p += x;
    return before;
}

static inline void __threadfence() {}

static inline float fast_exp2(float x) { return exp2f(x); }
static inline float fast_reciprocal(float x) { return 1.0f / x; }

// Round to nearest, ties to even; NaN stays NaN.
static inline unsigned short to_bf16(float x) {
    unsigned bits = __float_as_uint(x);
    if (x != x) {
        return 0x7fff;
    }
    return (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline unsigned pack_bf16(float low, float high) {
    return (unsigned)to_bf16(low) | (unsigned)to_bf16(high) << 16;
}

static inline void copy_async(void* shared, const void* global, bool present) {
    emulated::begin_copy(shared, global, present);
}

static inline void commit() {
    emulated::close_group();
}

template <int Pending>
static inline void wait_for() {
    emulated::wait_for_groups(Pending);
}

namespace emulated {
struct Product {
    float* d;
    const unsigned *a, *b;
};

// Element of a pair of bf16.
static inline float half_of(unsigned pair, int index) {
    return bits_of<float>(index == 0 ? pair << 16 : pair & 0xffff0000u);
}

// The fragments of all lanes to three matrices, their product, and back.
static void multiply(void* const* records) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const Product* record = (const Product*)records[lane];
        int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 2; i++) {
            for (int part = 0; part < 4; part++) {
                a[g + part % 2 * 8][2 * t + part / 2 * 8 + i] = half_of(record->a[part], i);
            }
            for (int part = 0; part < 2; part++) {
                b[2 * t + part * 8 + i][g] = half_of(record->b[part], i);
            }
        }
    }
    float d[16][8] = {};
    for (int row = 0; row < 16; row++) {
        for (int k = 0; k < 16; k++) {
            for (int column = 0; column < 8; column++) {
                d[row][column] += a[row][k] * b[k][column];
            }
        }
    }
    for (int lane = 0; lane < 32; lane++) {
        const Product* record = (const Product*)records[lane];
        for (int i = 0; i < 4; i++) {
            record->d[i] += d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
        }
    }
}

struct Rows {
    const unsigned short* row;
    unsigned* r;
};

template <bool Transposed>
static void load_matrices(void* const* records) {
    unsigned results[32][4];
    for (int lane = 0; lane < 32; lane++) {
        int g = lane / 4, t = lane % 4;
        for (int matrix = 0; matrix < 4; matrix++) {
            auto row = [&](int index) { return ((const Rows*)records[8 * matrix + index])->row; };
            unsigned low = Transposed ? row(2 * t)[g] : row(g)[2 * t];
            unsigned high = Transposed ? row(2 * t + 1)[g] : row(g)[2 * t + 1];
            results[lane][matrix] = low | high << 16;
        }
    }
    for (int lane = 0; lane < 32; lane++) {
        memcpy(((const Rows*)records[lane])->r, results[lane], sizeof results[lane]);
    }
}

template <bool Transposed>
static inline void load_matrix(unsigned (&r)[4], const void* row, int line) {
    if ((size_t)row % 16 != 0) {
        fail("load_matrix_x4 from an address that is no multiple of 16", line);
    }
    Rows record = {(const unsigned short*)row, r};
    collective(Transposed ? "load_matrix_x4_transposed" : "load_matrix_x4", line, &record, load_matrices<Transposed>);
}
}  // namespace emulated

static inline void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], LINE) {
    emulated::Product record = {d, a, b};
    emulated::collective("mma", line, &record, emulated::multiply);
}

static inline void load_matrix_x4(unsigned (&r)[4], const void* row, LINE) {
    emulated::load_matrix<false>(r, row, line);
}

static inline void load_matrix_x4_transposed(unsigned (&r)[4], const void* row, LINE) {
    emulated::load_matrix<true>(r, row, line);
}

namespace emulated {
// The section of __shared__ variables of this source; without any, the linker gives null.
#define MOTLEY_START MOTLEY_NAME(__start_motley_shared_, MOTLEY_SOURCE)
#define MOTLEY_STOP MOTLEY_NAME(__stop_motley_shared_, MOTLEY_SOURCE)
extern "C" unsigned char MOTLEY_START[] __attribute__((weak, visibility("hidden")));
extern "C" unsigned char MOTLEY_STOP[] __attribute__((weak, visibility("hidden")));

template <typename Kernel>
struct Signature;

template <typename... P>
struct Signature<void (*)(P...)> {
    static constexpr size_t count = sizeof...(P);
    template <size_t I>
    using Parameter = std::tuple_element_t<I, std::tuple<P...>>;
    using Args = Parameter<count - 1>;

    struct Call {
        void (*kernel)(P...);
        void** buffers;
        const void* args;
    };

    template <size_t... I>
    static void invoke(const Call* call, std::index_sequence<I...>) {
        Args args;
        memcpy(&args, call->args, sizeof args);
        call->kernel((Parameter<I>)call->buffers[I]..., args);
    }

    static void body(void* context) {
        invoke((const Call*)context, std::make_index_sequence<count - 1>());
    }
};

template <typename... P>
static const char* launch(void (*kernel)(P...), unsigned blocks, unsigned threads, unsigned shared_bytes,
                          void** buffers, const void* args) {
    using S = Signature<void (*)(P...)>;
    typename S::Call call = {kernel, buffers, args};
    return run(blocks, threads, shared_bytes, MOTLEY_START, MOTLEY_STOP, S::body, &call);
}
}  // namespace emulated
