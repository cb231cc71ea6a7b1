//! The fast path of `nf4`: a table of sixteen products a block.

use super::double::NESTED_BLOCK;
use super::{Args, BLOCK, CODE, DoubleArgs};
use crate::{Call, Workers};

const BLOCKS_A_TASK: usize = 256;

pub(super) fn dequantize(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let (packed, absmax) = (call.read::<u8>(), call.read::<f32>());
    let out = &mut call.write::<f32>()[..args.count as usize];
    fill(call.workers, packed, out, |block| absmax[block]);
}

pub(super) fn dequantize_double(call: &mut Call<'_>) {
    let args: DoubleArgs = call.arguments();
    let (packed, codes) = (call.read::<u8>(), call.read::<u8>());
    let (nested_absmax, map) = (call.read::<f32>(), call.read::<f32>());
    let out = &mut call.write::<f32>()[..args.count as usize];
    fill(call.workers, packed, out, |block| {
        map[usize::from(codes[block])] * nested_absmax[block / NESTED_BLOCK] + args.offset
    });
}

fn fill(workers: &Workers, packed: &[u8], out: &mut [f32], absmax: impl Fn(usize) -> f32 + Sync) {
    workers.pieces(out, BLOCKS_A_TASK * BLOCK, |task, piece| {
        for (i, values) in piece.chunks_mut(BLOCK).enumerate() {
            let block = task * BLOCKS_A_TASK + i;
            let absmax = absmax(block);
            let table: [f32; 16] = std::array::from_fn(|code| CODE[code] * absmax);
            for (j, value) in values.iter_mut().enumerate() {
                let byte = packed[(block * BLOCK + j) / 2];
                *value = table[(if j % 2 == 0 { byte >> 4 } else { byte & 15 }) as usize];
            }
        }
    });
}
