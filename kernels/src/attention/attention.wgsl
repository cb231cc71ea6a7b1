// A thread a query, or a key; a workgroup a tile of 64 of one text and head. What a thread holds of a head's elements is
// meant for registers, four to a vector; the others' rows are read by all threads of a tile at the same time.
//
//   forward    key by key; what was summed before is corrected where a score is the largest so far
//   backward   three kinds of tiles: dq of queries, dk of keys, dv of keys; p comes back from log_sum_exp
//
// The formulas stand in mod.rs.

struct Args {
    tokens: u32,
    texts: u32,
    longest: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    stride: u32,
    query: u32,
    key: u32,
    value: u32,
    scale: f32,
    causal: u32,
    dropout: f32,
    seed_low: u32,
    seed_high: u32,
    step: u32,
    site: u32,
}

// Set to the arguments of these names before the source is compiled.
const head_dim: u32 = 64u;
const stride: u32 = 192u;
const query: u32 = 0u;
const key: u32 = 64u;
const value: u32 = 128u;

// Set to 1 where the device computes on the processor.
const is_software: u32 = 0u;

// Vectors of a head; the last may be short.
const VECTORS: u32 = (head_dim + 3u) / 4u;
// Whether all of them lie where vectors of the buffers do.
const ALIGNED: bool = ((head_dim | stride | query | key | value) & 3u) == 0u;

@group(0) @binding(0) var<storage, read> forward_qkv: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> forward_cumulative_lengths: array<u32>;
@group(0) @binding(2) var<storage, read> forward_rows: array<u32>;
@group(0) @binding(3) var<storage, read_write> forward_out: array<f32>;
@group(0) @binding(4) var<storage, read_write> forward_log_sum_exp: array<f32>;
@group(0) @binding(5) var<uniform> forward_args: Args;

@group(0) @binding(0) var<storage, read> backward_dout: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> backward_qkv: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> backward_along: array<f32>;
@group(0) @binding(3) var<storage, read> backward_log_sum_exp: array<f32>;
@group(0) @binding(4) var<storage, read> backward_cumulative_lengths: array<u32>;
@group(0) @binding(5) var<storage, read> backward_rows: array<u32>;
@group(0) @binding(6) var<storage, read_write> backward_dqkv: array<f32>;
@group(0) @binding(7) var<uniform> backward_args: Args;

@group(0) @binding(0) var<storage, read> along_dout: array<f32>;
@group(0) @binding(1) var<storage, read> along_out: array<f32>;
@group(0) @binding(2) var<storage, read_write> along_along: array<f32>;
@group(0) @binding(3) var<uniform> along_args: Args;

const TILE: u32 = 64u;

// VECTORS, known when the source is compiled, so that arrays become registers. On the processor they could not, and
// loops written out would only make the source long to compile: there it is not known, and arrays have one more.
fn vectors_of(args: Args) -> u32 {
    return select(VECTORS, (args.head_dim + 3u) / 4u, is_software == 1u);
}

// 0 or 1/(1 − p): the draw of one pair, `index` is the key's place in its text.
fn kept(args: Args, head: u32, name: vec2<u32>, index: u32) -> f32 {
    if args.dropout == 0.0 {
        return 1.0;
    }
    let seed = dropout_key(args.seed_low, args.seed_high, args.step);
    let words = philox(vec4<u32>(index / 4u, args.site | (head << 16u), name.x, name.y), seed);
    return select(0.0, 1.0 / (1.0 - args.dropout), words[index % 4u] >= dropout_threshold(args.dropout));
}

// Of `tiles` for each text and head: text, head, first token of the tile within its text.
fn place_of(block: u32, tiles: u32, heads: u32) -> vec3<u32> {
    return vec3<u32>(block / (tiles * heads), block / tiles % heads, block % tiles * TILE);
}

// Vector `d` of the head whose elements begin at `first`; zeros behind its end.
fn forward_qkv_at(first: u32, d: u32) -> vec4<f32> {
    let i = first + 4u * d;
    if ALIGNED {
        return forward_qkv[i / 4u];
    }
    var x = vec4<f32>();
    for (var c = 0u; c < min(4u, head_dim - 4u * d); c += 1u) {
        x[c] = forward_qkv[(i + c) / 4u][(i + c) % 4u];
    }
    return x;
}

@compute @workgroup_size(64)
fn attention_forward(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let args = forward_args;
    let tiles = (args.longest + TILE - 1u) / TILE;
    let place = place_of(block_of(id, groups), tiles, args.heads);
    if place.x >= args.texts {
        return;
    }
    let start = forward_cumulative_lengths[place.x];
    let text_end = forward_cumulative_lengths[place.x + 1u];
    let token = start + place.z + lane;
    if token >= text_end {
        return;
    }
    let head = place.y;
    let column = head / (args.heads / args.kv_heads) * head_dim;
    let end = select(text_end, token + 1u, args.causal == 1u);
    let name = vec2<u32>(forward_rows[2u * token], forward_rows[2u * token + 1u]);

    let vectors = vectors_of(args);
    var q: array<vec4<f32>, VECTORS + is_software>;
    var sums: array<vec4<f32>, VECTORS + is_software>;
    for (var d = 0u; d < vectors; d += 1u) {
        q[d] = forward_qkv_at(token * stride + query + head * head_dim, d) * args.scale;
    }
    var largest = LOWEST;
    var total = 0.0;
    for (var k = start; k < end; k += 1u) {
        var score = 0.0;
        for (var d = 0u; d < vectors; d += 1u) {
            score += dot(q[d], forward_qkv_at(k * stride + key + column, d));
        }
        if score > largest {
            let correction = exact_exp(largest - score);
            largest = score;
            total *= correction;
            for (var d = 0u; d < vectors; d += 1u) {
                sums[d] *= correction;
            }
        }
        var weight = exact_exp(score - largest);
        total += weight;
        weight *= kept(args, head, name, k - start);
        for (var d = 0u; d < vectors; d += 1u) {
            sums[d] += weight * forward_qkv_at(k * stride + value + column, d);
        }
    }
    for (var d = 0u; d < vectors; d += 1u) {
        let out = sums[d] / total;
        for (var c = 0u; c < min(4u, head_dim - 4u * d); c += 1u) {
            forward_out[(token * args.heads + head) * head_dim + 4u * d + c] = out[c];
        }
    }
    forward_log_sum_exp[token * args.heads + head] = largest + exact_log(total);
}

fn backward_qkv_at(first: u32, d: u32) -> vec4<f32> {
    let i = first + 4u * d;
    if ALIGNED {
        return backward_qkv[i / 4u];
    }
    var x = vec4<f32>();
    for (var c = 0u; c < min(4u, head_dim - 4u * d); c += 1u) {
        x[c] = backward_qkv[(i + c) / 4u][(i + c) % 4u];
    }
    return x;
}

fn backward_dout_at(first: u32, d: u32) -> vec4<f32> {
    let i = first + 4u * d;
    if ALIGNED {
        return backward_dout[i / 4u];
    }
    var x = vec4<f32>();
    for (var c = 0u; c < min(4u, head_dim - 4u * d); c += 1u) {
        x[c] = backward_dout[(i + c) / 4u][(i + c) % 4u];
    }
    return x;
}

fn put_gradient(first: u32, d: u32, x: vec4<f32>) {
    for (var c = 0u; c < min(4u, head_dim - 4u * d); c += 1u) {
        backward_dqkv[first + 4u * d + c] = x[c];
    }
}

// Places of one query and head.
struct Query {
    // First element of its q, and of its dout.
    q: u32,
    dout: u32,
    log_sum_exp: f32,
    along: f32,
    name: vec2<u32>,
}

fn query_of(args: Args, token: u32, head: u32) -> Query {
    return Query(
        token * stride + query + head * head_dim,
        (token * args.heads + head) * head_dim,
        backward_log_sum_exp[token * args.heads + head],
        backward_along[token * args.heads + head],
        vec2<u32>(backward_rows[2u * token], backward_rows[2u * token + 1u]),
    );
}

fn query_gradient(args: Args, token: u32, head: u32, start: u32, end: u32) {
    let column = head / (args.heads / args.kv_heads) * head_dim;
    let own = query_of(args, token, head);
    let vectors = vectors_of(args);
    var q: array<vec4<f32>, VECTORS + is_software>;
    var dout: array<vec4<f32>, VECTORS + is_software>;
    var sums: array<vec4<f32>, VECTORS + is_software>;
    for (var d = 0u; d < vectors; d += 1u) {
        q[d] = backward_qkv_at(own.q, d) * args.scale;
        dout[d] = backward_dout_at(own.dout, d);
    }
    for (var k = start; k < end; k += 1u) {
        let key_row = k * stride + key + column;
        var score = 0.0;
        var dp = 0.0;
        for (var d = 0u; d < vectors; d += 1u) {
            score += dot(q[d], backward_qkv_at(key_row, d));
            dp += dot(dout[d], backward_qkv_at(k * stride + value + column, d));
        }
        dp *= kept(args, head, own.name, k - start);
        let ds = exact_exp(score - own.log_sum_exp) * (dp - own.along);
        for (var d = 0u; d < vectors; d += 1u) {
            sums[d] += ds * backward_qkv_at(key_row, d);
        }
    }
    for (var d = 0u; d < vectors; d += 1u) {
        put_gradient(own.q, d, args.scale * sums[d]);
    }
}

fn key_gradient(args: Args, token: u32, kv_head: u32, start: u32, end: u32) {
    let row = token * stride + kv_head * head_dim;
    let vectors = vectors_of(args);
    var k: array<vec4<f32>, VECTORS + is_software>;
    var v: array<vec4<f32>, VECTORS + is_software>;
    var sums: array<vec4<f32>, VECTORS + is_software>;
    for (var d = 0u; d < vectors; d += 1u) {
        k[d] = backward_qkv_at(row + key, d) * args.scale;
        v[d] = backward_qkv_at(row + value, d);
    }
    let first = select(start, token, args.causal == 1u);
    let group = args.heads / args.kv_heads;
    for (var head = kv_head * group; head < (kv_head + 1u) * group; head += 1u) {
        for (var t = first; t < end; t += 1u) {
            let other = query_of(args, t, head);
            var score = 0.0;
            var dp = 0.0;
            for (var d = 0u; d < vectors; d += 1u) {
                let dout = backward_dout_at(other.dout, d);
                score += dot(k[d], backward_qkv_at(other.q, d));
                dp += dot(v[d], dout);
            }
            dp *= kept(args, head, other.name, token - start);
            let ds = exact_exp(score - other.log_sum_exp) * (dp - other.along);
            for (var d = 0u; d < vectors; d += 1u) {
                sums[d] += ds * backward_qkv_at(other.q, d);
            }
        }
    }
    for (var d = 0u; d < vectors; d += 1u) {
        put_gradient(row + key, d, args.scale * sums[d]);
    }
}

fn value_gradient(args: Args, token: u32, kv_head: u32, start: u32, end: u32) {
    let row = token * stride + kv_head * head_dim;
    let vectors = vectors_of(args);
    var k: array<vec4<f32>, VECTORS + is_software>;
    var sums: array<vec4<f32>, VECTORS + is_software>;
    for (var d = 0u; d < vectors; d += 1u) {
        k[d] = backward_qkv_at(row + key, d) * args.scale;
    }
    let first = select(start, token, args.causal == 1u);
    let group = args.heads / args.kv_heads;
    for (var head = kv_head * group; head < (kv_head + 1u) * group; head += 1u) {
        for (var t = first; t < end; t += 1u) {
            let other = query_of(args, t, head);
            var score = 0.0;
            for (var d = 0u; d < vectors; d += 1u) {
                score += dot(k[d], backward_qkv_at(other.q, d));
            }
            let p = exact_exp(score - other.log_sum_exp);
            let weight = p * kept(args, head, other.name, token - start);
            for (var d = 0u; d < vectors; d += 1u) {
                sums[d] += weight * backward_dout_at(other.dout, d);
            }
        }
    }
    for (var d = 0u; d < vectors; d += 1u) {
        put_gradient(row + value, d, sums[d]);
    }
}

@compute @workgroup_size(64)
fn attention_backward(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let args = backward_args;
    let tiles = (args.longest + TILE - 1u) / TILE;
    let queries = tiles * args.texts * args.heads;
    let keys = tiles * args.texts * args.kv_heads;
    let block = block_of(id, groups);
    if block >= queries + 2u * keys {
        return;
    }
    var place = place_of(block, tiles, args.heads);
    if block >= queries {
        place = place_of((block - queries) % keys, tiles, args.kv_heads);
    }
    let start = backward_cumulative_lengths[place.x];
    let end = backward_cumulative_lengths[place.x + 1u];
    let token = start + place.z + lane;
    if token >= end {
        return;
    }
    if block < queries {
        query_gradient(args, token, place.y, start, select(end, token + 1u, args.causal == 1u));
    } else if block < queries + keys {
        key_gradient(args, token, place.y, start, end);
    } else {
        value_gradient(args, token, place.y, start, end);
    }
}

// A thread a query of one head.
@compute @workgroup_size(64)
fn attention_along(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = block_of(id, groups) * 64u + lane;
    if index >= along_args.tokens * along_args.heads {
        return;
    }
    var sum = 0.0;
    for (var d = 0u; d < head_dim; d += 1u) {
        sum += along_dout[index * head_dim + d] * along_out[index * head_dim + d];
    }
    along_along[index] = sum;
}
