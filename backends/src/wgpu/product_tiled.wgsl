// A workgroup `size` rows and columns, eight steps of the depth at a time in memory of the workgroup; a thread four rows
// and four columns of each quarter, so that it reads a vector from there for sixteen multiplications.

// Set before the source is compiled: 64, or 128, which brings a value for twice as many multiplications and takes
// matrices that are large both ways.
const size: u32 = 64u;
const DEPTH: u32 = 8u;
// Threads along a side.
const SIDE: u32 = size / 8u;
const THREADS: u32 = SIDE * SIDE;
// Values that a thread brings of each factor.
const BROUGHT: u32 = size * DEPTH / THREADS;
// Vectors from one step of the depth to the next in a tile: one more than a row has, so that threads that bring values
// of one row write to different banks.
const STEP: u32 = size / 4u + 1u;

// Element [k][row] and [k][column].
var<workgroup> left_tile: array<vec4<f32>, DEPTH * STEP>;
var<workgroup> right_tile: array<vec4<Kept>, DEPTH * STEP>;

// What a thread brings: steps of the depth and places in the row of a tile, the first and from one to the next.
struct Share {
    step: u32,
    place: u32,
    steps: u32,
    places: u32,
}

// Whichever way lies together in the buffer.
fn share_of(thread: u32, along_depth: bool) -> Share {
    if along_depth {
        return Share(thread % DEPTH, thread / DEPTH, 0u, THREADS / DEPTH);
    }
    return Share(thread / size, thread % size, THREADS / size, 0u);
}

@compute @workgroup_size(THREADS)
fn product_tiled(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let tile = tile_of(block_of(id, groups), size);
    if tile.x >= args.batch {
        return;
    }
    let l = share_of(thread, args.left_column == 1u);
    let r = share_of(thread, args.right_row == 1u);
    var left_first = args.left_offset + tile.x * args.left_batch + (tile.y + l.place) * args.left_row
        + l.step * args.left_column;
    var right_first = args.right_offset + tile.x * args.right_batch + (tile.z + r.place) * args.right_column
        + r.step * args.right_row;
    let left_next = l.places * args.left_row + l.steps * args.left_column;
    let right_next = r.places * args.right_column + r.steps * args.right_row;
    let down = thread / SIDE;
    let across = thread % SIDE;
    // Row i in 2·i and 2·i + 1.
    var sums: array<vec4<f32>, 16>;
    for (var first = 0u; first < args.depth; first += DEPTH) {
        workgroupBarrier();
        for (var i = 0u; i < BROUGHT; i += 1u) {
            // What lies outside is 0, which adds nothing.
            var value = 0.0;
            if first + l.step + i * l.steps < args.depth && tile.y + l.place + i * l.places < args.rows {
                value = left[left_first + i * left_next];
            }
            let to = l.place + i * l.places;
            left_tile[(l.step + i * l.steps) * STEP + to / 4u][to % 4u] = value;
            var kept = Kept();
            if first + r.step + i * r.steps < args.depth && tile.z + r.place + i * r.places < args.columns {
                kept = right_at(right_first + i * right_next);
            }
            let there = r.place + i * r.places;
            right_tile[(r.step + i * r.steps) * STEP + there / 4u][there % 4u] = kept;
        }
        left_first += DEPTH * args.left_column;
        right_first += DEPTH * args.right_row;
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k += 1u) {
            let a = left_tile[k * STEP + down];
            let b = left_tile[k * STEP + SIDE + down];
            let c = vec4<f32>(right_tile[k * STEP + across]);
            let d = vec4<f32>(right_tile[k * STEP + SIDE + across]);
            sums[0] += a.x * c;
            sums[1] += a.x * d;
            sums[2] += a.y * c;
            sums[3] += a.y * d;
            sums[4] += a.z * c;
            sums[5] += a.z * d;
            sums[6] += a.w * c;
            sums[7] += a.w * d;
            sums[8] += b.x * c;
            sums[9] += b.x * d;
            sums[10] += b.y * c;
            sums[11] += b.y * d;
            sums[12] += b.z * c;
            sums[13] += b.z * d;
            sums[14] += b.w * c;
            sums[15] += b.w * d;
        }
    }
    for (var i = 0u; i < 8u; i += 1u) {
        let row = tile.y + i / 4u * (size / 2u) + down * 4u + i % 4u;
        for (var j = 0u; j < 4u; j += 1u) {
            let column = tile.z + across * 4u + j;
            finish(tile.x, row, column, sums[2u * i][j]);
            finish(tile.x, row, column + size / 2u, sums[2u * i + 1u][j]);
        }
    }
}
