// A workgroup a token. A row of the piece of words is not below `words` if the token's word is in another piece.

struct Args {
    tokens: u32,
    hidden: u32,
    first_word: u32,
    words: u32,
}

@group(0) @binding(0) var<storage, read> token_ids: array<u32>;
@group(0) @binding(1) var<storage, read> position_ids: array<u32>;
@group(0) @binding(2) var<storage, read> type_ids: array<u32>;
@group(0) @binding(3) var<storage, read> word: array<f32>;
@group(0) @binding(4) var<storage, read> position: array<f32>;
@group(0) @binding(5) var<storage, read> token_type: array<f32>;
@group(0) @binding(6) var<storage, read_write> out: array<f32>;
@group(0) @binding(7) var<uniform> args: Args;

@compute @workgroup_size(64)
fn embed_forward(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let token = block_of(id, groups);
    if token >= args.tokens {
        return;
    }
    let row = token_ids[token] - args.first_word;
    if row >= args.words {
        return;
    }
    let first = row * args.hidden;
    let second = position_ids[token] * args.hidden;
    let third = type_ids[token] * args.hidden;
    for (var i = lane; i < args.hidden; i += 64u) {
        out[token * args.hidden + i] = (word[first + i] + position[second + i]) + token_type[third + i];
    }
}

@group(0) @binding(0) var<storage, read> words_token_ids: array<u32>;
@group(0) @binding(1) var<storage, read> words_word: array<f32>;
@group(0) @binding(2) var<storage, read_write> words_out: array<f32>;
@group(0) @binding(3) var<uniform> words_args: Args;

@compute @workgroup_size(64)
fn embed_words(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let token = id.x + id.y * groups.x;
    if token >= words_args.tokens {
        return;
    }
    let row = words_token_ids[token] - words_args.first_word;
    if row >= words_args.words {
        return;
    }
    let first = row * words_args.hidden;
    let start = token * words_args.hidden;
    for (var i = lane; i < words_args.hidden; i += 64u) {
        words_out[start + i] = words_word[first + i];
    }
}
