// A workgroup `size` rows and columns, eight steps of the depth at a time in memory of the workgroup; a thread four rows
// and four columns of each quarter, so that it reads a vector from there for sixteen multiplications.

// Set before the source is compiled: 64, or 128, which brings a value for twice as many multiplications and takes
// matrices that are large both ways.
const size: u32 = 64u;
const DEPTH: u32 = 8u;
// Threads along a side.
const SIDE: u32 = size / 8u;
const THREADS: u32 = SIDE * SIDE;
// Vectors that a thread brings of each factor, each whole: a device may write the rest of a vector with an element.
const BROUGHT: u32 = size * DEPTH / 4u / THREADS;
// Vectors from one step of the depth to the next in a tile: one more than a row has, so that threads that bring values
// of one row write to different banks.
const STEP: u32 = size / 4u + 1u;

// Element [k][row] and [k][column].
var<workgroup> left_tile: array<vec4<f32>, DEPTH * STEP>;
var<workgroup> right_tile: array<vec4<Kept>, DEPTH * STEP>;

// What a thread brings, four places of a step at a time: steps of the depth and places in the row of a tile, the first
// and from one vector to the next.
struct Share {
    step: u32,
    place: u32,
    steps: u32,
    places: u32,
}

// Whichever way lies together in the buffer.
fn share_of(thread: u32, along_depth: bool) -> Share {
    if along_depth {
        return Share(thread % DEPTH, thread / DEPTH * 4u, 0u, THREADS / DEPTH * 4u);
    }
    return Share(thread / (size / 4u), thread % (size / 4u) * 4u, THREADS / (size / 4u), 0u);
}

// Four elements, the first at `first`; of those, `count` at most are there, and the rest is 0, which adds nothing.
fn left_vector(first: u32, count: u32) -> vec4<f32> {
    var vector = vec4<f32>();
    if count > 0u {
        vector.x = left[first];
    }
    if count > 1u {
        vector.y = left[first + args.left_row];
    }
    if count > 2u {
        vector.z = left[first + 2u * args.left_row];
    }
    if count > 3u {
        vector.w = left[first + 3u * args.left_row];
    }
    return vector;
}

fn right_vector(first: u32, count: u32) -> vec4<Kept> {
    var vector = vec4<Kept>();
    if count > 0u {
        vector.x = right_at(first);
    }
    if count > 1u {
        vector.y = right_at(first + args.right_column);
    }
    if count > 2u {
        vector.z = right_at(first + 2u * args.right_column);
    }
    if count > 3u {
        vector.w = right_at(first + 3u * args.right_column);
    }
    return vector;
}

// How many of the places from `place` on, of step `step`, are inside.
fn inside(step: u32, place: u32, places: u32) -> u32 {
    return select(0u, places - place, step < args.depth && place < places);
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
            let left_step = l.step + i * l.steps;
            let left_place = l.place + i * l.places;
            let rows = inside(first + left_step, tile.y + left_place, args.rows);
            left_tile[left_step * STEP + left_place / 4u] = left_vector(left_first + i * left_next, rows);
            let right_step = r.step + i * r.steps;
            let right_place = r.place + i * r.places;
            let columns = inside(first + right_step, tile.z + right_place, args.columns);
            right_tile[right_step * STEP + right_place / 4u] = right_vector(right_first + i * right_next, columns);
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
