//! The fast path of `cross_entropy`: the specification in f64 a row, rows cut among the threads.

use super::{Args, reference};
use crate::Call;

const ROWS_A_TASK: usize = 8;

pub(super) fn forward_backward(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let (target, masked) = (call.read::<u32>(), call.read::<u32>());
    let (rows, columns) = (args.rows as usize, args.columns as usize);
    let logits = &mut call.write::<f32>()[..rows * columns];
    let loss = &mut call.write::<f32>()[..rows];
    if rows == 0 {
        return;
    }
    let piece = ROWS_A_TASK * columns;
    call.workers.pieces_of_two((logits, piece), (loss, ROWS_A_TASK), |task, logits, loss| {
        for (i, (row, loss)) in logits.chunks_exact_mut(columns).zip(loss).enumerate() {
            let r = task * ROWS_A_TASK + i;
            let wide: Vec<f64> = row.iter().map(|v| f64::from(*v)).collect();
            let mask = &masked[r * columns..(r + 1) * columns];
            let (losses, gradient) =
                reference::forward_backward(&wide, &target[r..=r], mask, f64::from(args.weight));
            *loss = losses[0] as f32;
            row.iter_mut().zip(gradient).for_each(|(v, g)| *v = g as f32);
        }
    });
}
