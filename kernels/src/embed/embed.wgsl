// embed: see mod.rs for the formula.

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
    let row = words_token_ids[token] * words_args.hidden;
    let start = token * words_args.hidden;
    for (var i = lane; i < words_args.hidden; i += 64u) {
        words_out[start + i] = words_word[row + i];
    }
}
