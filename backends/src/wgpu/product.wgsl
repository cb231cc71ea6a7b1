// What both ways of multiplying share: output = alpha·left·right + bias, activated, + beta·output, `batch` times. Any of
// the matrices may be stored by rows or by columns. A sum runs over the depth in order, one term at a time: the bits of
// an output row depend on its row of `left` and on `right` alone.

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
}

@group(0) @binding(0) var<storage, read> left: array<f32>;
@group(0) @binding(1) var<storage, read> right: array<u32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> output: array<f32>;
@group(0) @binding(4) var<uniform> args: Args;

// How elements of `right` are stored; set before the source is compiled.
const right_format: u32 = 0u;
const F32: u32 = 0u;
const BF16: u32 = 1u;

// Exact, also below the normal numbers; not every device has this as a builtin.
fn from_f16(bits: u32) -> f32 {
    let size = bits & 0x7fffu;
    var exponent = 0x38000000u;
    if size >= 0x7c00u {
        exponent = 0x70000000u;
    }
    let value = bitcast<f32>((size << 13u) + exponent);
    return select(1.0, -1.0, (bits & 0x8000u) != 0u) * select(value, f32(size) * 0x1p-24, size < 0x400u);
}

fn right_at(index: u32) -> f32 {
    if right_format == F32 {
        return bitcast<f32>(right[index]);
    }
    let word = right[index / 2u];
    if right_format == BF16 {
        return bitcast<f32>(word >> (16u * (index % 2u)) << 16u);
    }
    return from_f16(word >> (16u * (index % 2u)) & 0xffffu);
}

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
