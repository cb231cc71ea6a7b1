// A workgroup 64 rows and 64 columns, 16 steps of the depth at a time in memory of the workgroup; a thread four rows
// and four columns of it.

const DEPTH: u32 = 16u;

// By the depth first: element [k][row] and [k][column].
var<workgroup> left_tile: array<f32, 1024>;
var<workgroup> right_tile: array<f32, 1024>;

// Place in a tile that a thread brings: along the depth or across it, whichever lies together in the buffer.
fn step_and_place(index: u32, along_depth: bool) -> vec2<u32> {
    return select(vec2<u32>(index / 64u, index % 64u), vec2<u32>(index % DEPTH, index / DEPTH), along_depth);
}

@compute @workgroup_size(256)
fn product_tiled(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let tile = tile_of(block_of(id, groups), 64u);
    if tile.x >= args.batch {
        return;
    }
    let left_start = args.left_offset + tile.x * args.left_batch;
    let right_start = args.right_offset + tile.x * args.right_batch;
    let row = thread / 16u * 4u;
    let column = thread % 16u * 4u;
    var sums0 = vec4<f32>();
    var sums1 = vec4<f32>();
    var sums2 = vec4<f32>();
    var sums3 = vec4<f32>();
    for (var first = 0u; first < args.depth; first += DEPTH) {
        workgroupBarrier();
        for (var i = 0u; i < 4u; i += 1u) {
            let l = step_and_place(i * 256u + thread, args.left_column == 1u);
            var value = 0.0;
            if first + l.x < args.depth && tile.y + l.y < args.rows {
                value = left[left_start + (tile.y + l.y) * args.left_row + (first + l.x) * args.left_column];
            }
            left_tile[l.x * 64u + l.y] = value;
            let r = step_and_place(i * 256u + thread, args.right_row == 1u);
            value = 0.0;
            if first + r.x < args.depth && tile.z + r.y < args.columns {
                value = right[right_start + (first + r.x) * args.right_row + (tile.z + r.y) * args.right_column];
            }
            right_tile[r.x * 64u + r.y] = value;
        }
        workgroupBarrier();
        // No step past the end: 0 times what is not a number is not 0.
        for (var k = 0u; k < min(DEPTH, args.depth - first); k += 1u) {
            let a = k * 64u + row;
            let b = k * 64u + column;
            let r = vec4<f32>(right_tile[b], right_tile[b + 1u], right_tile[b + 2u], right_tile[b + 3u]);
            sums0 += left_tile[a] * r;
            sums1 += left_tile[a + 1u] * r;
            sums2 += left_tile[a + 2u] * r;
            sums3 += left_tile[a + 3u] * r;
        }
    }
    for (var j = 0u; j < 4u; j += 1u) {
        finish(tile.x, tile.y + row, tile.z + column + j, sums0[j]);
        finish(tile.x, tile.y + row + 1u, tile.z + column + j, sums1[j]);
        finish(tile.x, tile.y + row + 2u, tile.z + column + j, sums2[j]);
        finish(tile.x, tile.y + row + 3u, tile.z + column + j, sums3[j]);
    }
}
