//! The CoSENT loss: a pair with the higher label shall have the higher cosine.
//!
//! L = log(1 + Σ_{y_i < y_j} exp(scale·(c_i − c_j)))
//!
//! Source: Su 2022 (CoSENT), sentence-transformers' `CoSENTLoss`.

mod cpu;
pub mod reference;

use crate::kernel::Grid;
use crate::{Arguments, Binding, Entry, Kernel, arguments};

arguments! {
    /// Scalars of `forward_backward`.
    pub struct Args {
        pub pairs: u32,
        pub scale: f32,
    }
}

/// `cosine`, `label`, `gradient` [pairs]; `loss` [1].
pub static FORWARD_BACKWARD: Entry = Entry {
    name: "cosent.forward_backward",
    bindings: &[
        Binding::read("cosine"),
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
    name: "cosent",
    entries: &[&FORWARD_BACKWARD],
    cuda: include_str!("cosent.cu"),
    wgsl: include_str!("cosent.wgsl"),
};

#[cfg(test)]
mod tests {
    use crate::check::{Buffers, assert_close, assert_gradient, random, wide};

    use super::*;

    #[test]
    fn gradient_is_that_of_the_specification() {
        let (cosine, label) = (wide(&random(6, 1)), vec![0.0, 1.0, 1.0, 3.0, 2.0, 0.0]);
        let (_, gradient) = reference::forward_backward(&cosine, &label, 20.0);
        assert_gradient(&cosine, &[1.0], &gradient, |c| vec![reference::forward_backward(c, &label, 20.0).0]);
    }

    #[test]
    fn fast_path_agrees_with_the_specification() {
        for pairs in [0, 1, 2, 33, 300] {
            let cosine = random(pairs, 2);
            let label: Vec<f32> = random(pairs, 3).iter().map(|v| (v * 3.0).round()).collect();
            let args = Args { pairs: pairs as u32, scale: 20.0 };
            let got = Buffers::new().f32(&cosine).f32(&label).output(1).output(pairs);
            let got = got.run(&FORWARD_BACKWARD, args);
            let (loss, gradient) = reference::forward_backward(&wide(&cosine), &wide(&label), 20.0);
            assert_close(&got[0], &[loss], 1e-6);
            assert_close(&got[1], &gradient, 5e-6);
        }
    }

    #[test]
    fn equal_labels_give_no_loss() {
        let (loss, gradient) = reference::forward_backward(&[0.1, 0.9], &[1.0, 1.0], 20.0);
        assert_eq!((loss, gradient), (0.0, vec![0.0, 0.0]));
    }
}
