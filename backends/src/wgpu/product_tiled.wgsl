// A workgroup 64 rows and 64 columns, 16 steps of the depth at a time in memory of the workgroup; a thread eight rows
// and eight columns of it, so that it reads a value from there for four multiplications.

const DEPTH: u32 = 16u;
const SIZE: u32 = 64u;
// From one step of the depth to the next in a tile: four more than a row, so that threads that bring values of one row
// write to different banks.
const STEP: u32 = 68u;

// Element [k][row] and [k][column].
var<workgroup> left_tile: array<f32, 1088>;
var<workgroup> right_tile: array<Kept, 1088>;

// Step and place in a tile of the value that a thread brings: whichever way lies together in the buffer.
fn brought(index: u32, along_depth: bool) -> vec2<u32> {
    return select(vec2<u32>(index / SIZE, index % SIZE), vec2<u32>(index % DEPTH, index / DEPTH), along_depth);
}

// Four columns of one step.
fn right_tile_at(place: u32) -> vec4<f32> {
    return vec4<f32>(vec4<Kept>(
        right_tile[place],
        right_tile[place + 1u],
        right_tile[place + 2u],
        right_tile[place + 3u],
    ));
}

@compute @workgroup_size(64)
fn product_tiled(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let tile = tile_of(block_of(id, groups), SIZE);
    if tile.x >= args.batch {
        return;
    }
    let left_start = args.left_offset + tile.x * args.left_batch;
    let right_start = args.right_offset + tile.x * args.right_batch;
    let row = thread / 8u * 8u;
    let column = thread % 8u * 8u;
    // Row i in 2·i and 2·i + 1.
    var sums: array<vec4<f32>, 16>;
    for (var first = 0u; first < args.depth; first += DEPTH) {
        workgroupBarrier();
        for (var i = 0u; i < 16u; i += 1u) {
            let l = brought(i * 64u + thread, args.left_column == 1u);
            var value = 0.0;
            if first + l.x < args.depth && tile.y + l.y < args.rows {
                value = left[left_start + (tile.y + l.y) * args.left_row + (first + l.x) * args.left_column];
            }
            left_tile[l.x * STEP + l.y] = value;
            let r = brought(i * 64u + thread, args.right_row == 1u);
            var kept = Kept();
            if first + r.x < args.depth && tile.z + r.y < args.columns {
                kept = right_at(right_start + (first + r.x) * args.right_row + (tile.z + r.y) * args.right_column);
            }
            right_tile[r.x * STEP + r.y] = kept;
        }
        workgroupBarrier();
        for (var k = 0u; k < min(DEPTH, args.depth - first); k += 1u) {
            let a = k * STEP + row;
            let b = k * STEP + column;
            let r = right_tile_at(b);
            let s = right_tile_at(b + 4u);
            for (var i = 0u; i < 8u; i += 1u) {
                let l = left_tile[a + i];
                sums[2u * i] += l * r;
                sums[2u * i + 1u] += l * s;
            }
        }
    }
    for (var i = 0u; i < 8u; i += 1u) {
        for (var j = 0u; j < 4u; j += 1u) {
            finish(tile.x, tile.y + row + i, tile.z + column + j, sums[2u * i][j]);
            finish(tile.x, tile.y + row + i, tile.z + column + 4u + j, sums[2u * i + 1u][j]);
        }
    }
}
