// A thread a pair. The formula stands in mod.rs.

struct Args {
    u32 tokens;
    u32 heads;
    u32 head_dim;
    u32 stride;
    u32 inverse;
};

extern "C" __global__ void rope_apply(const u32* positions, const float* table, activation* x, Args args) {
    u32 index = blockIdx.x * blockDim.x + threadIdx.x;
    u32 half = args.head_dim / 2;
    if (index >= args.tokens * args.heads * half) {
        return;
    }
    u32 i = index % half, head = index / half % args.heads, token = index / half / args.heads;
    const float* row = table + (u64)positions[token] * args.head_dim;
    float cosine = row[i];
    float sine = args.inverse == 1 ? -row[half + i] : row[half + i];
    activation* pair = x + (u64)token * args.stride + head * args.head_dim + i;
    float first = load(pair), second = load(pair + half);
    store(pair, first * cosine - second * sine);
    store(pair + half, second * cosine + first * sine);
}
