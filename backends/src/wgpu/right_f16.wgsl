// The right factor of a product in the device's own f16. A tile keeps them as they are: half the memory, the same
// values, for every f16 is an f32.

@group(0) @binding(1) var<storage, read> right: array<f16>;
@group(0) @binding(4) var<uniform> args: Args;

alias Kept = f16;

fn right_at(index: u32) -> f16 {
    return right[index];
}
