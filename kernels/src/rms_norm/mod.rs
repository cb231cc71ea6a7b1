//! Normalisation by the root mean square, alone and behind a residual addition.
//!
//! r = 1/√(Σ x² / H + epsilon),  y = x·r·gamma
//! dx = r·(g − n·mean(g·n)),  g = dy·gamma,  n = x·r
//!
//! Source: Zhang and Sennrich 2019; epsilon inside the root and the factor behind the rounding to n, as in Llama.

pub(crate) mod cpu;
pub mod reference;

use crate::kernel::Grid;
use crate::{Arguments, Binding, Entry, Kernel, arguments};

arguments! {
    /// Scalars of all entries.
    pub struct Args {
        pub rows: u32,
        pub hidden: u32,
        pub epsilon: f32,
    }
}

/// `x`, `y` [rows, hidden]; `gamma` [hidden]; `reciprocal_root` [rows].
pub static FORWARD: Entry = Entry {
    name: "rms_norm.forward",
    bindings: &[
        Binding::input("x"),
        Binding::read("gamma"),
        Binding::output("y"),
        Binding::write("reciprocal_root"),
    ],
    arguments: Args::FIELDS,
    cuda: |args| Grid::warps(Args::of(args).rows),
    wgsl: |args| Args::of(args).rows,
    cpu: cpu::forward,
};

/// sum = x + residual, then as `forward` on the sum. `x` is overwritten by the sum.
pub static RESIDUAL_FORWARD: Entry = Entry {
    name: "rms_norm.residual_forward",
    bindings: &[
        Binding::changed("x"),
        Binding::input("residual"),
        Binding::read("gamma"),
        Binding::output("y"),
        Binding::write("reciprocal_root"),
    ],
    arguments: Args::FIELDS,
    cuda: |args| Grid::warps(Args::of(args).rows),
    wgsl: |args| Args::of(args).rows,
    cpu: cpu::residual_forward,
};

/// `x` is what was normalised (the sum, behind a residual).
pub static BACKWARD: Entry = Entry {
    name: "rms_norm.backward",
    bindings: &[
        Binding::input("dy"),
        Binding::input("x"),
        Binding::read("gamma"),
        Binding::read("reciprocal_root"),
        Binding::output("dx"),
    ],
    arguments: Args::FIELDS,
    cuda: |args| Grid::warps(Args::of(args).rows),
    wgsl: |args| Args::of(args).rows,
    cpu: cpu::backward,
};

pub static KERNEL: Kernel = Kernel {
    name: "rms_norm",
    entries: &[&FORWARD, &RESIDUAL_FORWARD, &BACKWARD],
    cuda: include_str!("rms_norm.cu"),
    wgsl: include_str!("rms_norm.wgsl"),
};

#[cfg(test)]
mod tests {
    use crate::check::{Buffers, assert_close, assert_gradient, random, wide};

    use super::*;

    #[test]
    fn gradient_is_that_of_the_specification() {
        let (x, gamma, dy) = (wide(&random(15, 1)), wide(&random(5, 2)), wide(&random(15, 3)));
        let forward = |x: &[f64]| reference::forward(x, &gamma, 1e-6).y;
        let saved = reference::forward(&x, &gamma, 1e-6);
        let dx = reference::backward(&dy, &x, &gamma, &saved.reciprocal_root);
        assert_gradient(&x, &dy, &dx, forward);
    }

    #[test]
    fn fast_path_agrees_with_the_specification() {
        for (rows, hidden, size) in [(0, 8, 1.0), (1, 1, 1.0), (3, 17, 1.0), (70, 128, 1.0), (5, 768, 1e4)] {
            let x: Vec<f32> = random(rows * hidden, 7).iter().map(|v| v * size).collect();
            let residual: Vec<f32> = random(rows * hidden, 8).iter().map(|v| v * size).collect();
            let (gamma, dy) = (random(hidden, 9), random(rows * hidden, 10));
            let args = Args { rows: rows as u32, hidden: hidden as u32, epsilon: 1e-6 };
            let sum: Vec<f32> = x.iter().zip(&residual).map(|(a, b)| a + b).collect();
            let wanted = reference::forward(&wide(&sum), &wide(&gamma), 1e-6);
            let got = Buffers::new().updated(&x).f32(&residual).f32(&gamma);
            let got = got.output(rows * hidden).output(rows).run(&RESIDUAL_FORWARD, args);
            assert_eq!(got[0], sum);
            assert_close(&got[1], &wanted.y, 2e-6);
            let plain = Buffers::new().f32(&sum).f32(&gamma);
            let plain = plain.output(rows * hidden).output(rows).run(&FORWARD, args);
            assert_eq!(plain, got[1..]);
            let dx = Buffers::new().f32(&dy).f32(&sum).f32(&gamma).f32(&got[2]);
            let dx = dx.output(rows * hidden).run(&BACKWARD, args);
            let wanted = reference::backward(&wide(&dy), &wide(&sum), &wide(&gamma), &wanted.reciprocal_root);
            assert_close(&dx[0], &wanted, 4e-6);
        }
    }

    #[test]
    fn a_row_of_zeros_stays_one_and_nan_stays_visible() {
        let args = Args { rows: 2, hidden: 3, epsilon: 1e-6 };
        let x = [0.0, 0.0, 0.0, 1.0, f32::NAN, 2.0];
        let got = Buffers::new().f32(&x).f32(&[1.0; 3]).output(6).output(2).run(&FORWARD, args);
        assert_eq!(got[0][..3], [0.0; 3]);
        assert!(got[0][3..].iter().all(|value| value.is_nan()));
    }
}
