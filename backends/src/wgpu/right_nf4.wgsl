// The right factor of a product in NF4, as kernel nf4 stores it and with the bits that its dequantization has: blocks of
// 64 elements share a scale, whatever row they are of.

@group(0) @binding(1) var<storage, read> right: array<u32>;
// absmax, or the codes of double quantization, four a word.
@group(0) @binding(4) var<storage, read> scales: array<u32>;
// One for 256 of those codes.
@group(0) @binding(5) var<storage, read> nested_absmax: array<f32>;
// The 256 values of those codes, then the 16 of NF4's own.
@group(0) @binding(6) var<storage, read> tables: array<f32>;
@group(0) @binding(7) var<uniform> args: Args;

alias Kept = f32;

// Set before the source is compiled.
const right_format: u32 = 4u;
const DOUBLE: u32 = 5u;

fn scale_of(block: u32) -> f32 {
    let word = scales[block / select(1u, 4u, right_format == DOUBLE)];
    if right_format != DOUBLE {
        return bitcast<f32>(word);
    }
    let scaled = tables[(word >> (8u * (block % 4u))) & 255u] * nested_absmax[block / 256u];
    // Rounded by itself, as the specification does: a weight is one matrix, and `right_batch` 0, but no compiler knows
    // it, so that this product and the sum are not fused.
    return bitcast<f32>(bitcast<u32>(scaled) ^ args.right_batch) + args.scale_offset;
}

fn right_at(index: u32) -> f32 {
    // The first element of a byte is its high nibble.
    let shift = 4u * ((index % 8u) ^ 1u);
    return tables[256u + ((right[index / 8u] >> shift) & 15u)] * scale_of(index / 64u);
}
