// A thread a query, or a key; a workgroup a tile of 64 of one text and head. What a thread holds of `head_dim` elements
// is meant for registers; the others' rows are read by all threads of a tile at the same time.
//
//   forward    keys in groups of eight: their scores first, then one correction of what was summed before
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

// Set to the argument of this name before the source is compiled.
const head_dim: u32 = 64u;

@group(0) @binding(0) var<storage, read> forward_qkv: array<f32>;
@group(0) @binding(1) var<storage, read> forward_cumulative_lengths: array<u32>;
@group(0) @binding(2) var<storage, read> forward_rows: array<u32>;
@group(0) @binding(3) var<storage, read_write> forward_out: array<f32>;
@group(0) @binding(4) var<storage, read_write> forward_log_sum_exp: array<f32>;
@group(0) @binding(5) var<uniform> forward_args: Args;

@group(0) @binding(0) var<storage, read> backward_dout: array<f32>;
@group(0) @binding(1) var<storage, read> backward_qkv: array<f32>;
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
const GROUP: u32 = 8u;

// 0 or 1/(1 − p): the draw of one pair, `index` is the key's place in its text.
fn kept(args: Args, head: u32, name: vec2<u32>, index: u32) -> f32 {
    if args.dropout == 0.0 {
        return 1.0;
    }
    let key = dropout_key(args.seed_low, args.seed_high, args.step);
    let words = philox(vec4<u32>(index / 4u, args.site | (head << 16u), name.x, name.y), key);
    return select(0.0, 1.0 / (1.0 - args.dropout), words[index % 4u] >= dropout_threshold(args.dropout));
}

// Of `tiles` for each text and head: text, head, first token of the tile within its text.
fn place_of(block: u32, tiles: u32, heads: u32) -> vec3<u32> {
    return vec3<u32>(block / (tiles * heads), block / tiles % heads, block % tiles * TILE);
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
    let kv_head = head / (args.heads / args.kv_heads);
    let end = select(text_end, token + 1u, args.causal == 1u);
    let name = vec2<u32>(forward_rows[2u * token], forward_rows[2u * token + 1u]);

    var query: array<f32, head_dim>;
    var sums: array<f32, head_dim>;
    for (var d = 0u; d < head_dim; d += 1u) {
        query[d] = forward_qkv[token * args.stride + args.query + head * head_dim + d] * args.scale;
    }
    var largest = LOWEST;
    var total = 0.0;
    for (var first = start; first < end; first += GROUP) {
        let count = min(GROUP, end - first);
        var weights: array<f32, 8>;
        var group_largest = largest;
        for (var j = 0u; j < count; j += 1u) {
            let key = (first + j) * args.stride + args.key + kv_head * head_dim;
            var score = 0.0;
            for (var d = 0u; d < head_dim; d += 1u) {
                score += query[d] * forward_qkv[key + d];
            }
            weights[j] = score;
            group_largest = max(group_largest, score);
        }
        let correction = exact_exp(largest - group_largest);
        largest = group_largest;
        total *= correction;
        for (var d = 0u; d < head_dim; d += 1u) {
            sums[d] *= correction;
        }
        for (var j = 0u; j < count; j += 1u) {
            var weight = exact_exp(weights[j] - largest);
            total += weight;
            weight *= kept(args, head, name, first + j - start);
            let value = (first + j) * args.stride + args.value + kv_head * head_dim;
            for (var d = 0u; d < head_dim; d += 1u) {
                sums[d] += weight * forward_qkv[value + d];
            }
        }
    }
    for (var d = 0u; d < head_dim; d += 1u) {
        forward_out[(token * args.heads + head) * head_dim + d] = sums[d] / total;
    }
    forward_log_sum_exp[token * args.heads + head] = largest + exact_log(total);
}

// What the sums of one query and head need.
struct Query {
    // First element of its q, and of its dout.
    q: u32,
    dout: u32,
    log_sum_exp: f32,
    // Σ dout·out
    along: f32,
    name: vec2<u32>,
}

fn query_of(args: Args, token: u32, head: u32) -> Query {
    let dout = (token * args.heads + head) * head_dim;
    return Query(
        token * args.stride + args.query + head * head_dim,
        dout,
        backward_log_sum_exp[token * args.heads + head],
        backward_along[token * args.heads + head],
        vec2<u32>(backward_rows[2u * token], backward_rows[2u * token + 1u]),
    );
}

fn query_gradient(args: Args, token: u32, head: u32, start: u32, end: u32) {
    let kv_head = head / (args.heads / args.kv_heads);
    let query = query_of(args, token, head);
    var q: array<f32, head_dim>;
    var dout: array<f32, head_dim>;
    var sums: array<f32, head_dim>;
    for (var d = 0u; d < head_dim; d += 1u) {
        q[d] = backward_qkv[query.q + d] * args.scale;
        dout[d] = backward_dout[query.dout + d];
    }
    for (var k = start; k < end; k += 1u) {
        let key = k * args.stride + args.key + kv_head * head_dim;
        let value = k * args.stride + args.value + kv_head * head_dim;
        var score = 0.0;
        var dp = 0.0;
        for (var d = 0u; d < head_dim; d += 1u) {
            score += q[d] * backward_qkv[key + d];
            dp += dout[d] * backward_qkv[value + d];
        }
        dp *= kept(args, head, query.name, k - start);
        let ds = exact_exp(score - query.log_sum_exp) * (dp - query.along);
        for (var d = 0u; d < head_dim; d += 1u) {
            sums[d] += ds * backward_qkv[key + d];
        }
    }
    for (var d = 0u; d < head_dim; d += 1u) {
        backward_dqkv[query.q + d] = args.scale * sums[d];
    }
}

fn key_gradient(args: Args, token: u32, kv_head: u32, start: u32, end: u32) {
    let key = token * args.stride + args.key + kv_head * head_dim;
    let value = token * args.stride + args.value + kv_head * head_dim;
    var k: array<f32, head_dim>;
    var v: array<f32, head_dim>;
    var sums: array<f32, head_dim>;
    for (var d = 0u; d < head_dim; d += 1u) {
        k[d] = backward_qkv[key + d] * args.scale;
        v[d] = backward_qkv[value + d];
    }
    let first = select(start, token, args.causal == 1u);
    let group = args.heads / args.kv_heads;
    for (var head = kv_head * group; head < (kv_head + 1u) * group; head += 1u) {
        for (var t = first; t < end; t += 1u) {
            let query = query_of(args, t, head);
            var score = 0.0;
            var dp = 0.0;
            for (var d = 0u; d < head_dim; d += 1u) {
                score += k[d] * backward_qkv[query.q + d];
                dp += v[d] * backward_dout[query.dout + d];
            }
            dp *= kept(args, head, query.name, token - start);
            let ds = exact_exp(score - query.log_sum_exp) * (dp - query.along);
            for (var d = 0u; d < head_dim; d += 1u) {
                sums[d] += ds * backward_qkv[query.q + d];
            }
        }
    }
    for (var d = 0u; d < head_dim; d += 1u) {
        backward_dqkv[key + d] = args.scale * sums[d];
    }
}

fn value_gradient(args: Args, token: u32, kv_head: u32, start: u32, end: u32) {
    let key = token * args.stride + args.key + kv_head * head_dim;
    var k: array<f32, head_dim>;
    var sums: array<f32, head_dim>;
    for (var d = 0u; d < head_dim; d += 1u) {
        k[d] = backward_qkv[key + d] * args.scale;
    }
    let first = select(start, token, args.causal == 1u);
    let group = args.heads / args.kv_heads;
    for (var head = kv_head * group; head < (kv_head + 1u) * group; head += 1u) {
        for (var t = first; t < end; t += 1u) {
            let q = t * args.stride + args.query + head * head_dim;
            let dout = (t * args.heads + head) * head_dim;
            let name = vec2<u32>(backward_rows[2u * t], backward_rows[2u * t + 1u]);
            var score = 0.0;
            for (var d = 0u; d < head_dim; d += 1u) {
                score += k[d] * backward_qkv[q + d];
            }
            let p = exact_exp(score - backward_log_sum_exp[t * args.heads + head]);
            let weight = p * kept(args, head, name, token - start);
            for (var d = 0u; d < head_dim; d += 1u) {
                sums[d] += weight * backward_dout[dout + d];
            }
        }
    }
    for (var d = 0u; d < head_dim; d += 1u) {
        backward_dqkv[token * args.stride + args.value + kv_head * head_dim + d] = sums[d];
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
