//! Softmax cross-entropy of rows of logits, with a mask of columns that do not count.
//!
//! L_i = weight·(log Σ_{j allowed} exp(z_ij) − z_it),  dz_ij = weight·(p_ij − [j = t])
//!
//! The gradient takes the place of the logits.
//!
//! Source: InfoNCE (van den Oord et al. 2018) as sentence-transformers' `MultipleNegativesRankingLoss` computes it.

mod cpu;
pub mod reference;

use crate::kernel::Grid;
use crate::{Arguments, Binding, Entry, Kernel, arguments};

arguments! {
    /// Scalars of `forward_backward`.
    pub struct Args {
        pub rows: u32,
        pub columns: u32,
        /// Weight of a row, such as 1/rows.
        pub weight: f32,
    }
}

/// `target` u32 [rows]; `masked` u32 [rows, columns], 1: does not count (never the target); `logits` [rows, columns]
/// become their gradient; `loss` [rows].
pub static FORWARD_BACKWARD: Entry = Entry {
    name: "cross_entropy.forward_backward",
    bindings: &[
        Binding::read_u32("target"),
        Binding::read_u32("masked"),
        Binding::update("logits"),
        Binding::write("loss"),
    ],
    arguments: Args::FIELDS,
    cuda: |args| Grid::new(Args::of(args).rows, 256),
    wgsl: |args| Args::of(args).rows,
    cpu: cpu::forward_backward,
};

pub static KERNEL: Kernel = Kernel {
    name: "cross_entropy",
    entries: &[&FORWARD_BACKWARD],
    cuda: include_str!("cross_entropy.cu"),
    wgsl: include_str!("cross_entropy.wgsl"),
};

#[cfg(test)]
mod tests {
    use crate::check::{Buffers, assert_close, assert_gradient, random, wide};

    use super::*;

    #[test]
    fn gradient_is_that_of_the_specification() {
        let logits = wide(&random(12, 1));
        let (target, masked) = ([0, 3, 1], [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        let (loss, gradient) = reference::forward_backward(&logits, &target, &masked, 0.5);
        assert_eq!(loss.len(), 3);
        let forward = |z: &[f64]| reference::forward_backward(z, &target, &masked, 0.5).0;
        assert_gradient(&logits, &[1.0; 3], &gradient, forward);
    }

    #[test]
    fn fast_path_agrees_with_the_specification() {
        for (rows, columns, size) in [(0, 4, 1.0), (1, 1, 1.0), (5, 17, 1.0), (32, 64, 100.0)] {
            let logits: Vec<f32> = random(rows * columns, 2).iter().map(|v| v * size).collect();
            let target: Vec<u32> = (0..rows).map(|r| (r * 7 % columns) as u32).collect();
            let masked: Vec<u32> = (0..rows * columns)
                .map(|i| u32::from(i % 5 == 0 && i % columns != target[i / columns] as usize))
                .collect();
            let weight = 1.0 / rows.max(1) as f32;
            let args = Args { rows: rows as u32, columns: columns as u32, weight };
            let got = Buffers::new().u32(&target).u32(&masked).updated(&logits).output(rows);
            let got = got.run(&FORWARD_BACKWARD, args);
            let (loss, gradient) =
                reference::forward_backward(&wide(&logits), &target, &masked, f64::from(weight));
            assert_close(&got[0], &gradient, 1e-6);
            assert_close(&got[1], &loss, 2e-6);
        }
    }
}
