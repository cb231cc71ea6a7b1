// What both ways of multiplying share: output = alpha·left·right + bias, activated, + beta·output, `batch` times. Any of
// the matrices may be stored by rows or by columns. A sum runs over the depth in order, one term at a time: the bits of
// an output row depend on its row of `left` and on `right` alone.
//
// How `right` is stored is the business of a source that follows, one of several: it has binding 1, those behind 3 and
// `args`, and
//
//   Kept       what a tile keeps of an element
//   right_at   an element

struct Args {
    // m, n, k
    rows: u32,
    columns: u32,
    depth: u32,
    batch: u32,
    // Elements before the first matrix, from row to row, from column to column, from matrix to matrix.
    left_offset: u32,
    left_row: u32,
    left_column: u32,
    left_batch: u32,
    right_offset: u32,
    right_row: u32,
    right_column: u32,
    right_batch: u32,
    output_offset: u32,
    output_row: u32,
    output_batch: u32,
    bias_offset: u32,
    alpha: f32,
    beta: f32,
    // 0: none, 1: bias, 2 to 4: bias, then the activation of that kind plus 2, 5 to 7: the activation alone
    epilogue: u32,
    // Of NF4: the mean that double quantization takes off scales.
    scale_offset: f32,
}

@group(0) @binding(0) var<storage, read> left: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> output: array<f32>;

// Matrix of the batch, first row and first column of a tile of `size` × `size`.
fn tile_of(block: u32, size: u32) -> vec3<u32> {
    let across = (args.columns + size - 1u) / size;
    let down = (args.rows + size - 1u) / size;
    return vec3<u32>(block / (across * down), block / across % down * size, block % across * size);
}

fn finish(matrix: u32, row: u32, column: u32, sum: f32) {
    if row >= args.rows || column >= args.columns {
        return;
    }
    var value = args.alpha * sum;
    if args.epilogue > 0u && args.epilogue < 5u {
        value += bias[args.bias_offset + column];
    }
    if args.epilogue > 1u {
        value = activation((args.epilogue - 2u) % 3u, value);
    }
    let place = args.output_offset + matrix * args.output_batch + row * args.output_row + column;
    if args.beta != 0.0 {
        value += args.beta * output[place];
    }
    output[place] = value;
}
