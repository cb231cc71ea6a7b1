// A thread a pair. The formula stands in mod.rs.

struct Args {
    tokens: u32,
    heads: u32,
    head_dim: u32,
    stride: u32,
    inverse: u32,
}

const THREADS = 256u;

@group(0) @binding(0) var<storage, read> positions: array<u32>;
@group(0) @binding(1) var<storage, read> angles: array<f32>;
@group(0) @binding(2) var<storage, read_write> x: array<f32>;
@group(0) @binding(3) var<uniform> args: Args;

@compute @workgroup_size(THREADS)
fn rope_apply(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = (id.x + id.y * groups.x) * THREADS + lane;
    let half = args.head_dim / 2u;
    if index >= args.tokens * args.heads * half {
        return;
    }
    let i = index % half;
    let head = index / half % args.heads;
    let token = index / half / args.heads;
    let row = positions[token] * args.head_dim;
    let cosine = angles[row + i];
    var sine = angles[row + half + i];
    if args.inverse == 1u {
        sine = -sine;
    }
    let place = token * args.stride + head * args.head_dim + i;
    let first = x[place];
    let second = x[place + half];
    x[place] = first * cosine - second * sine;
    x[place + half] = second * cosine + first * sine;
}
