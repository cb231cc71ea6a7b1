// The right factor of a product in f32, or in 16 bits that are taken out of words.

@group(0) @binding(1) var<storage, read> right: array<u32>;
@group(0) @binding(4) var<uniform> args: Args;

alias Kept = f32;

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
