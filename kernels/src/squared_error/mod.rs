//! Mean squared error.
//!
//! L = Σ (x − y)² / n,  dx = 2·(x − y)/n
//!
//! Source: sentence-transformers' `CosineSimilarityLoss` with its default `MSELoss`.

mod cpu;
pub mod reference;

use crate::kernel::Grid;
use crate::{Arguments, Binding, Entry, Kernel, arguments};

arguments! {
    /// Scalars of `forward_backward`.
    pub struct Args {
        pub count: u32,
    }
}

/// `x`, `label`, `gradient` [count]; `loss` [1].
pub static FORWARD_BACKWARD: Entry = Entry {
    name: "squared_error.forward_backward",
    bindings: &[
        Binding::read("x"),
        Binding::read("label"),
        Binding::write("loss"),
        Binding::write("gradient"),
    ],
    arguments: Args::FIELDS,
    cuda: |_| Grid::new(1, 1024),
    wgsl: |_| 1,
    cpu: cpu::forward_backward,
};

pub static KERNEL: Kernel = Kernel {
    name: "squared_error",
    entries: &[&FORWARD_BACKWARD],
    cuda: include_str!("squared_error.cu"),
    wgsl: include_str!("squared_error.wgsl"),
};

#[cfg(test)]
mod tests {
    use crate::check::{Buffers, assert_close, assert_gradient, random, wide};

    use super::*;

    #[test]
    fn gradient_and_fast_path_agree_with_the_specification() {
        for count in [1, 2, 33] {
            let (x, label) = (random(count, 1), random(count, 2));
            let (loss, gradient) = reference::forward_backward(&wide(&x), &wide(&label));
            let forward = |x: &[f64]| vec![reference::forward_backward(x, &wide(&label)).0];
            assert_gradient(&wide(&x), &[1.0], &gradient, forward);
            let got = Buffers::new().f32(&x).f32(&label).output(1).output(count);
            let got = got.run(&FORWARD_BACKWARD, Args { count: count as u32 });
            assert_close(&got[0], &[loss], 1e-6);
            assert_close(&got[1], &gradient, 1e-6);
        }
    }
}
