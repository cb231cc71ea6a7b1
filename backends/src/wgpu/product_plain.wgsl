// A thread four rows and four columns, without memory of the workgroup: for adapters that compute on the processor,
// where a barrier costs more than what it saves. Rows and columns past the end repeat the last and are not stored.

@compute @workgroup_size(8, 8)
fn product_plain(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) thread: vec3<u32>,
) {
    let tile = tile_of(block_of(id, groups), 32u);
    if tile.x >= args.batch {
        return;
    }
    let row = tile.y + thread.y * 4u;
    // Of few rows, most threads have none.
    if row >= args.rows {
        return;
    }
    let column = tile.z + thread.x * 4u;
    let rows = min(vec4<u32>(row, row + 1u, row + 2u, row + 3u), vec4<u32>(args.rows - 1u));
    let columns = min(vec4<u32>(column, column + 1u, column + 2u, column + 3u), vec4<u32>(args.columns - 1u));
    var a = args.left_offset + tile.x * args.left_batch + rows * args.left_row;
    var b = args.right_offset + tile.x * args.right_batch + columns * args.right_column;
    var sums0 = vec4<f32>();
    var sums1 = vec4<f32>();
    var sums2 = vec4<f32>();
    var sums3 = vec4<f32>();
    for (var k = 0u; k < args.depth; k += 1u) {
        let r = vec4<f32>(vec4<Kept>(right_at(b.x), right_at(b.y), right_at(b.z), right_at(b.w)));
        sums0 += left[a.x] * r;
        sums1 += left[a.y] * r;
        sums2 += left[a.z] * r;
        sums3 += left[a.w] * r;
        a += vec4<u32>(args.left_column);
        b += vec4<u32>(args.right_row);
    }
    for (var j = 0u; j < 4u; j += 1u) {
        finish(tile.x, row, column + j, sums0[j]);
        finish(tile.x, row + 1u, column + j, sums1[j]);
        finish(tile.x, row + 2u, column + j, sums2[j]);
        finish(tile.x, row + 3u, column + j, sums3[j]);
    }
}
