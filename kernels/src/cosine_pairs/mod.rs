//! Cosine of rows with the same index.
//!
//! c = a·b / (‖a‖·‖b‖),  da = dc·(b/(‖a‖‖b‖) − c·a/‖a‖²),  db likewise
//!
//! Source: sentence-transformers' `pairwise_cos_sim` (each side normalised with the floor 1e-12).

mod cpu;
pub mod reference;

use crate::kernel::Grid;
use crate::{Arguments, Binding, Entry, Kernel, arguments};

arguments! {
    /// Scalars of both entries.
    pub struct Args {
        pub rows: u32,
        pub width: u32,
    }
}

/// `a`, `b` [rows, width]; `cosine` [rows].
pub static FORWARD: Entry = Entry {
    name: "cosine_pairs.forward",
    bindings: &[Binding::read("a"), Binding::read("b"), Binding::write("cosine")],
    arguments: Args::FIELDS,
    cuda: |args| Grid::warps(Args::of(args).rows),
    wgsl: |args| Args::of(args).rows,
    cpu: cpu::forward,
};

pub static BACKWARD: Entry = Entry {
    name: "cosine_pairs.backward",
    bindings: &[
        Binding::read("dcosine"),
        Binding::read("a"),
        Binding::read("b"),
        Binding::write("da"),
        Binding::write("db"),
    ],
    arguments: Args::FIELDS,
    cuda: |args| Grid::warps(Args::of(args).rows),
    wgsl: |args| Args::of(args).rows,
    cpu: cpu::backward,
};

pub static KERNEL: Kernel = Kernel {
    name: "cosine_pairs",
    entries: &[&FORWARD, &BACKWARD],
    cuda: include_str!("cosine_pairs.cu"),
    wgsl: include_str!("cosine_pairs.wgsl"),
};

#[cfg(test)]
mod tests {
    use crate::check::{Buffers, assert_close, assert_gradient, random, wide};

    use super::*;

    #[test]
    fn gradients_are_those_of_the_specification() {
        let (a, b, d) = (wide(&random(12, 1)), wide(&random(12, 2)), wide(&random(3, 3)));
        let (da, db) = reference::backward(&d, &a, &b, 4);
        assert_gradient(&a, &d, &da, |a| reference::forward(a, &b, 4));
        assert_gradient(&b, &d, &db, |b| reference::forward(&a, b, 4));
    }

    #[test]
    fn fast_path_agrees_with_the_specification() {
        for (rows, width) in [(0, 3), (1, 1), (5, 17), (32, 384)] {
            let (a, b, d) = (random(rows * width, 4), random(rows * width, 5), random(rows, 6));
            let args = Args { rows: rows as u32, width: width as u32 };
            let got = Buffers::new().f32(&a).f32(&b).output(rows).run(&FORWARD, args);
            assert_close(&got[0], &reference::forward(&wide(&a), &wide(&b), width), 1e-6);
            let got = Buffers::new().f32(&d).f32(&a).f32(&b).output(rows * width).output(rows * width);
            let got = got.run(&BACKWARD, args);
            let (da, db) = reference::backward(&wide(&d), &wide(&a), &wide(&b), width);
            assert_close(&got[0], &da, 2e-6);
            assert_close(&got[1], &db, 2e-6);
        }
    }
}
