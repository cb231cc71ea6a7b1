// A block takes 64 queries of one head of one text (forward; backward of q), or 64 keys (backward of k and v); the
// blocks of a launch are numbered text by text, head by head. The formulas stand in mod.rs.
//
// The plain functions take sixteen rows at a time, any head size and either precision. The tensor functions behind
// them take 16-bit activations and the head sizes that they are named after; mod.rs says when. Every sum has one
// owner, so the bits are the same in every run.

struct Args {
    u32 tokens;
    u32 texts;
    u32 longest;
    u32 heads;
    u32 kv_heads;
    u32 head_dim;
    u32 stride;
    u32 query;
    u32 key;
    u32 value;
    float scale;
    u32 causal;
    float dropout;
    u32 seed_low;
    u32 seed_high;
    u32 step;
    u32 site;
};

#define TILE 64u
#define LOG2_E 1.4426950408889634f

// What a block works on.
struct Place {
    u32 head;
    u32 kv_head;
    // First token of the text, and how many there are.
    u32 start;
    u32 length;
    // First row of the tile within the text.
    u32 first;
};

__device__ __forceinline__ Place place_of(u32 block, u32 heads, const u32* cumulative_lengths, const Args& args) {
    u32 tiles = (args.longest + TILE - 1) / TILE;
    u32 text = block / tiles / heads;
    Place p;
    p.head = block / tiles % heads;
    p.kv_head = heads == args.heads ? p.head / (args.heads / args.kv_heads) : p.head;
    p.start = cumulative_lengths[text];
    p.length = cumulative_lengths[text + 1] - p.start;
    p.first = block % tiles * TILE;
    return p;
}

// 0, or what a kept probability is multiplied with.
__device__ __forceinline__ float kept(const Args& args, const u32* rows, u32 query_token, u32 head, u32 key) {
    u32 words[4] = {key / 4, args.site | head << 16, rows[2 * query_token], rows[2 * query_token + 1]};
    philox(words, args.seed_low, args.seed_high ^ (args.step * 0x9e3779b9u));
    u32 word = key % 4 == 0 ? words[0] : key % 4 == 1 ? words[1] : key % 4 == 2 ? words[2] : words[3];
    return word >= dropout_threshold(args.dropout) ? 1.0f / (1.0f - args.dropout) : 0.0f;
}

// ---- plain

#define ROWS 16u

// Sums over the eight threads that own a row together.
__device__ __forceinline__ float row_sum(float x) {
    for (int distance = 4; distance > 0; distance /= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, distance);
    }
    return x;
}

__device__ __forceinline__ float row_max(float x) {
    for (int distance = 4; distance > 0; distance /= 2) {
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, distance));
    }
    return x;
}

// Sixteen rows of `dim` from `source` on, each `stride` behind the last, to rows of dim + 1; zeros where no row is.
__device__ __forceinline__ void load_rows(float* target, const activation* source, u32 stride, u32 present, u32 dim) {
    for (u32 i = threadIdx.x; i < ROWS * dim; i += blockDim.x) {
        u32 row = i / dim, column = i % dim;
        target[row * (dim + 1) + column] = row < present ? load(source + (u64)row * stride + column) : 0.0f;
    }
}

__device__ __forceinline__ float dot(const float* a, const float* b, u32 dim) {
    float sum = 0.0f;
    for (u32 d = 0; d < dim; d++) {
        sum += a[d] * b[d];
    }
    return sum;
}

__device__ __forceinline__ u32 rows_from(u32 first, u32 length) {
    return first < length ? min(length - first, ROWS) : 0;
}

extern "C" __global__ void attention_forward(const activation* qkv, const u32* cumulative_lengths, const u32* rows,
                                             activation* out, float* log_sum_exp, Args args) {
    extern __shared__ float memory[];
    u32 dim = args.head_dim, pitch = dim + 1;
    float *q = memory, *k = q + ROWS * pitch, *v = k + ROWS * pitch, *o = v + ROWS * pitch, *p = o + ROWS * pitch;
    Place at = place_of(blockIdx.x, args.heads, cumulative_lengths, args);
    // Thread t owns row t/8, its keys t%8 and t%8 + 8, its dimensions t%8, t%8 + 8, ...
    u32 row = threadIdx.x / 8, part = threadIdx.x % 8;
    for (u32 first = at.first; first < min(at.first + TILE, at.length); first += ROWS) {
        u32 query = first + row;
        const activation* start = qkv + (u64)(at.start + first) * args.stride + args.query + at.head * dim;
        __syncthreads();
        load_rows(q, start, args.stride, rows_from(first, at.length), dim);
        for (u32 i = threadIdx.x; i < ROWS * pitch; i += blockDim.x) {
            o[i] = 0.0f;
        }
        float most = MINUS_INFINITY, total = 0.0f;
        u32 end = args.causal ? min(first + ROWS, at.length) : at.length;
        for (u32 key = 0; key < end; key += ROWS) {
            const activation* base = qkv + (u64)(at.start + key) * args.stride + at.kv_head * dim;
            __syncthreads();
            load_rows(k, base + args.key, args.stride, rows_from(key, at.length), dim);
            load_rows(v, base + args.value, args.stride, rows_from(key, at.length), dim);
            __syncthreads();
            float score[2];
            for (u32 i = 0; i < 2; i++) {
                u32 j = part + 8 * i;
                bool seen = key + j < at.length && (!args.causal || key + j <= query);
                score[i] = seen ? args.scale * dot(q + row * pitch, k + j * pitch, dim) : MINUS_INFINITY;
            }
            float higher = fmaxf(most, row_max(fmaxf(score[0], score[1])));
            // A row below its first key under the causal mask has seen nothing yet.
            float shift = higher == MINUS_INFINITY ? 0.0f : higher;
            float fade = expf(most - shift);
            float sum = 0.0f;
            for (u32 i = 0; i < 2; i++) {
                u32 j = part + 8 * i;
                float probability = expf(score[i] - shift);
                sum += probability;
                bool drops = args.dropout > 0.0f && query < at.length;
                float factor = drops ? kept(args, rows, at.start + query, at.head, key + j) : 1.0f;
                p[row * ROWS + j] = probability * factor;
            }
            total = total * fade + row_sum(sum);
            most = higher;
            __syncwarp();
            for (u32 d = part; d < dim; d += 8) {
                float value = o[row * pitch + d] * fade;
                for (u32 j = 0; j < ROWS; j++) {
                    value += p[row * ROWS + j] * v[j * pitch + d];
                }
                o[row * pitch + d] = value;
            }
        }
        if (query < at.length) {
            activation* target = out + ((u64)(at.start + query) * args.heads + at.head) * dim;
            for (u32 d = part; d < dim; d += 8) {
                store(target + d, o[row * pitch + d] / total);
            }
            if (part == 0) {
                log_sum_exp[(u64)(at.start + query) * args.heads + at.head] = most + logf(total);
            }
        }
    }
}

// A thread a query of one head.
extern "C" __global__ void attention_along(const activation* dout, const activation* out, float* along, Args args) {
    u32 index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= args.tokens * args.heads) {
        return;
    }
    dout += (u64)index * args.head_dim;
    out += (u64)index * args.head_dim;
    float sum = 0.0f;
    if (rows_of_eights(dout, args.head_dim) && rows_of_eights(out, args.head_dim)) {
        for (u32 d = 0; d < args.head_dim; d += 8) {
            float x[8], y[8];
            load8(dout + d, x);
            load8(out + d, y);
            for (u32 i = 0; i < 8; i++) {
                sum += x[i] * y[i];
            }
        }
    } else {
        for (u32 d = 0; d < args.head_dim; d++) {
            sum += load(dout + d) * load(out + d);
        }
    }
    along[index] = sum;
}

struct BackwardBuffers {
    const activation* dout;
    const activation* qkv;
    const float* along;
    const float* log_sum_exp;
    const u32* rows;
    activation* dqkv;
};

__device__ __forceinline__ void backward_queries(const BackwardBuffers& b, const Place& at, const Args& args,
                                                 float* memory) {
    u32 dim = args.head_dim, pitch = dim + 1;
    float *q = memory, *d_out = q + ROWS * pitch, *k = d_out + ROWS * pitch, *v = k + ROWS * pitch;
    float *dq = v + ROWS * pitch, *ds = dq + ROWS * pitch;
    u32 row = threadIdx.x / 8, part = threadIdx.x % 8;
    for (u32 first = at.first; first < min(at.first + TILE, at.length); first += ROWS) {
        u32 query = first + row;
        bool present = query < at.length;
        u64 token = at.start + (present ? query : first);
        u64 corner = (u64)(at.start + first) * args.heads * dim + at.head * dim;
        u64 start = (u64)(at.start + first) * args.stride + args.query + at.head * dim;
        __syncthreads();
        load_rows(q, b.qkv + start, args.stride, rows_from(first, at.length), dim);
        load_rows(d_out, b.dout + corner, args.heads * dim, rows_from(first, at.length), dim);
        for (u32 i = threadIdx.x; i < ROWS * pitch; i += blockDim.x) {
            dq[i] = 0.0f;
        }
        float along = b.along[token * args.heads + at.head];
        float log_sum = b.log_sum_exp[token * args.heads + at.head];
        u32 end = args.causal ? min(first + ROWS, at.length) : at.length;
        for (u32 key = 0; key < end; key += ROWS) {
            const activation* base = b.qkv + (u64)(at.start + key) * args.stride + at.kv_head * dim;
            __syncthreads();
            load_rows(k, base + args.key, args.stride, rows_from(key, at.length), dim);
            load_rows(v, base + args.value, args.stride, rows_from(key, at.length), dim);
            __syncthreads();
            for (u32 i = 0; i < 2; i++) {
                u32 j = part + 8 * i;
                bool seen = present && key + j < at.length && (!args.causal || key + j <= query);
                float slope = 0.0f;
                if (seen) {
                    float score = args.scale * dot(q + row * pitch, k + j * pitch, dim);
                    float factor = args.dropout > 0.0f ? kept(args, b.rows, (u32)token, at.head, key + j) : 1.0f;
                    float dp = factor * dot(d_out + row * pitch, v + j * pitch, dim);
                    slope = expf(score - log_sum) * (dp - along) * args.scale;
                }
                ds[row * ROWS + j] = slope;
            }
            __syncwarp();
            for (u32 d = part; d < dim; d += 8) {
                float value = dq[row * pitch + d];
                for (u32 j = 0; j < ROWS; j++) {
                    value += ds[row * ROWS + j] * k[j * pitch + d];
                }
                dq[row * pitch + d] = value;
            }
        }
        if (present) {
            activation* target = b.dqkv + token * args.stride + args.query + at.head * dim;
            for (u32 d = part; d < dim; d += 8) {
                store(target + d, dq[row * pitch + d]);
            }
        }
    }
}

__device__ __forceinline__ void backward_keys(const BackwardBuffers& b, const Place& at, const Args& args,
                                              float* memory) {
    u32 dim = args.head_dim, pitch = dim + 1, group = args.heads / args.kv_heads;
    float *k = memory, *v = k + ROWS * pitch, *q = v + ROWS * pitch, *d_out = q + ROWS * pitch;
    float *dk = d_out + ROWS * pitch, *dv = dk + ROWS * pitch, *p = dv + ROWS * pitch, *ds = p + ROWS * ROWS;
    float *along = ds + ROWS * ROWS, *log_sum = along + ROWS;
    u32 row = threadIdx.x / 8, part = threadIdx.x % 8;
    for (u32 first = at.first; first < min(at.first + TILE, at.length); first += ROWS) {
        u32 key = first + row;
        const activation* base = b.qkv + (u64)(at.start + first) * args.stride + at.head * dim;
        __syncthreads();
        load_rows(k, base + args.key, args.stride, rows_from(first, at.length), dim);
        load_rows(v, base + args.value, args.stride, rows_from(first, at.length), dim);
        for (u32 i = threadIdx.x; i < ROWS * pitch; i += blockDim.x) {
            dk[i] = 0.0f;
            dv[i] = 0.0f;
        }
        for (u32 head = at.head * group; head < (at.head + 1) * group; head++) {
            for (u32 query = args.causal ? first : 0; query < at.length; query += ROWS) {
                u64 token = at.start + query;
                u64 place = (token * args.heads + head) * dim;
                u32 present = rows_from(query, at.length);
                __syncthreads();
                load_rows(q, b.qkv + token * args.stride + args.query + head * dim, args.stride, present, dim);
                load_rows(d_out, b.dout + place, args.heads * dim, present, dim);
                if (part == 0 && row < present) {
                    along[row] = b.along[(token + row) * args.heads + head];
                    log_sum[row] = b.log_sum_exp[(token + row) * args.heads + head];
                }
                __syncthreads();
                for (u32 i = 0; i < 2; i++) {
                    u32 j = part + 8 * i;
                    bool seen = j < present && key < at.length && (!args.causal || key <= query + j);
                    float probability = 0.0f, slope = 0.0f;
                    if (seen) {
                        float score = args.scale * dot(q + j * pitch, k + row * pitch, dim);
                        float factor = args.dropout > 0.0f ? kept(args, b.rows, (u32)token + j, head, key) : 1.0f;
                        float dp = factor * dot(d_out + j * pitch, v + row * pitch, dim);
                        probability = expf(score - log_sum[j]);
                        slope = probability * (dp - along[j]) * args.scale;
                        probability *= factor;
                    }
                    p[row * ROWS + j] = probability;
                    ds[row * ROWS + j] = slope;
                }
                __syncwarp();
                for (u32 d = part; d < dim; d += 8) {
                    float value_k = dk[row * pitch + d], value_v = dv[row * pitch + d];
                    for (u32 j = 0; j < ROWS; j++) {
                        value_k += ds[row * ROWS + j] * q[j * pitch + d];
                        value_v += p[row * ROWS + j] * d_out[j * pitch + d];
                    }
                    dk[row * pitch + d] = value_k;
                    dv[row * pitch + d] = value_v;
                }
            }
        }
        if (key < at.length) {
            activation* target = b.dqkv + (u64)(at.start + key) * args.stride + at.head * dim;
            for (u32 d = part; d < dim; d += 8) {
                store(target + args.key + d, dk[row * pitch + d]);
                store(target + args.value + d, dv[row * pitch + d]);
            }
        }
    }
}

// Blocks of queries come first, then blocks of keys.
__device__ __forceinline__ u32 query_blocks(const Args& args) {
    return (args.longest + TILE - 1) / TILE * args.texts * args.heads;
}

extern "C" __global__ void attention_backward(const activation* dout, const activation* qkv, const float* along,
                                              const float* log_sum_exp, const u32* cumulative_lengths,
                                              const u32* rows, activation* dqkv, Args args) {
    extern __shared__ float memory[];
    BackwardBuffers b = {dout, qkv, along, log_sum_exp, rows, dqkv};
    u32 queries = query_blocks(args);
    if (blockIdx.x < queries) {
        backward_queries(b, place_of(blockIdx.x, args.heads, cumulative_lengths, args), args, memory);
    } else {
        Place at = place_of(blockIdx.x - queries, args.kv_heads, cumulative_lengths, args);
        backward_keys(b, at, args, memory);
    }
}
