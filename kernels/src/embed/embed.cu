// embed: see mod.rs for the formula.

extern "C" __global__ void embed_words(const u32* token_ids, const activation* word, activation* out, Args args) {
    u32 token = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (token >= args.tokens) {
        return;
    }
    const activation* row = word + (u64)token_ids[token] * args.hidden;
    activation* target = out + (u64)token * args.hidden;
    for (u32 i = threadIdx.x % 32; i < args.hidden; i += 32) {
        target[i] = row[i];
    }
}
