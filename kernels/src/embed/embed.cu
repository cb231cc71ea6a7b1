// A warp a token. A row of the piece of words is not below `words` if the token's word is in another piece. The
// formulas stand in mod.rs.

struct Args {
    u32 tokens;
    u32 hidden;
    u32 first_word;
    u32 words;
};

extern "C" __global__ void embed_forward(const u32* token_ids, const u32* position_ids, const u32* type_ids,
                                         const activation* word, const activation* position,
                                         const activation* token_type, activation* out, Args args) {
    u32 token = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (token >= args.tokens) {
        return;
    }
    u32 row = token_ids[token] - args.first_word;
    if (row >= args.words) {
        return;
    }
    word += (u64)row * args.hidden;
    position += (u64)position_ids[token] * args.hidden;
    token_type += (u64)type_ids[token] * args.hidden;
    out += (u64)token * args.hidden;
    for (u32 i = threadIdx.x % 32; i < args.hidden; i += 32) {
        store(out + i, load(word + i) + load(position + i) + load(token_type + i));
    }
}

extern "C" __global__ void embed_words(const u32* token_ids, const activation* word, activation* out, Args args) {
    u32 token = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (token >= args.tokens) {
        return;
    }
    u32 row = token_ids[token] - args.first_word;
    if (row >= args.words) {
        return;
    }
    word += (u64)row * args.hidden;
    activation* target = out + (u64)token * args.hidden;
    for (u32 i = threadIdx.x % 32; i < args.hidden; i += 32) {
        target[i] = word[i];
    }
}
