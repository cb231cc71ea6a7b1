//! The fast path of `nf4`: a table of sixteen products a block.

use super::{Args, BLOCK, CODE};
use crate::Call;

const BLOCKS_A_TASK: usize = 256;

pub(super) fn dequantize(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let (packed, absmax) = (call.read::<u8>(), call.read::<f32>());
    let out = &mut call.write::<f32>()[..args.count as usize];
    call.workers.pieces(out, BLOCKS_A_TASK * BLOCK, |task, piece| {
        for (i, values) in piece.chunks_mut(BLOCK).enumerate() {
            let block = task * BLOCKS_A_TASK + i;
            let table: [f32; 16] = std::array::from_fn(|code| CODE[code] * absmax[block]);
            for (j, value) in values.iter_mut().enumerate() {
                let byte = packed[(block * BLOCK + j) / 2];
                *value = table[(if j % 2 == 0 { byte >> 4 } else { byte & 15 }) as usize];
            }
        }
    });
}
