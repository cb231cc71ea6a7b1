//! Layer normalisation, alone and behind a residual addition.
//!
//! mean = Σ x / H,  d = 1/√(Σ (x − mean)² / H + epsilon),  y = (x − mean)·d·gamma + beta
//! dx = d·(g − mean(g) − n·mean(g·n)),  g = dy·gamma,  n = (x − mean)·d
//!
//! Source: Ba et al. 2016. The variance is taken in a second pass, as PyTorch's float32 kernels do in effect.

mod cpu;
pub mod reference;

use crate::kernel::Grid;
use crate::{Arguments, Binding, Entry, Kernel, arguments};

arguments! {
    /// Scalars of `forward` and `backward`.
    pub struct Args {
        pub rows: u32,
        pub hidden: u32,
        pub epsilon: f32,
    }
}

arguments! {
    /// Scalars of `residual_forward`.
    pub struct ResidualArgs {
        pub rows: u32,
        pub hidden: u32,
        pub epsilon: f32,
        /// 0 where `y` alone is wanted: what is in `x` and the statistics then is anything.
        pub keep: u32,
    }
}

/// `x`, `y` [rows, hidden]; `gamma`, `beta` [hidden]; `mean`, `reciprocal_deviation` [rows].
pub static FORWARD: Entry = Entry {
    name: "layer_norm.forward",
    bindings: &[
        Binding::input("x"),
        Binding::read("gamma"),
        Binding::read("beta"),
        Binding::output("y"),
        Binding::write("mean"),
        Binding::write("reciprocal_deviation"),
    ],
    arguments: Args::FIELDS,
    cuda: |args| Grid::warps(Args::of(args).rows),
    wgsl: |args| Args::of(args).rows,
    cpu: cpu::forward,
};

/// sum = x + residual, then as `forward` on the sum. `x` is overwritten by the sum where it is kept.
pub static RESIDUAL_FORWARD: Entry = Entry {
    name: "layer_norm.residual_forward",
    bindings: &[
        Binding::changed("x"),
        Binding::input("residual"),
        Binding::read("gamma"),
        Binding::read("beta"),
        Binding::output("y"),
        Binding::write("mean"),
        Binding::write("reciprocal_deviation"),
    ],
    arguments: ResidualArgs::FIELDS,
    cuda: |args| Grid::warps(ResidualArgs::of(args).rows),
    wgsl: |args| ResidualArgs::of(args).rows,
    cpu: cpu::residual_forward,
};

/// `x` is what was normalised (the sum, behind a residual).
pub static BACKWARD: Entry = Entry {
    name: "layer_norm.backward",
    bindings: &[
        Binding::input("dy"),
        Binding::input("x"),
        Binding::read("gamma"),
        Binding::read("mean"),
        Binding::read("reciprocal_deviation"),
        Binding::output("dx"),
    ],
    arguments: Args::FIELDS,
    cuda: |args| Grid::warps(Args::of(args).rows),
    wgsl: |args| Args::of(args).rows,
    cpu: cpu::backward,
};

pub static KERNEL: Kernel = Kernel {
    name: "layer_norm",
    entries: &[&FORWARD, &RESIDUAL_FORWARD, &BACKWARD],
    cuda: include_str!("layer_norm.cu"),
    wgsl: include_str!("layer_norm.wgsl"),
};

#[cfg(test)]
mod tests {
    use crate::check::{Buffers, assert_close, assert_gradient, random, wide};

    use super::*;

    #[test]
    fn gradient_is_that_of_the_specification() {
        let (x, gamma, beta, dy) = (random(12, 1), random(4, 2), random(4, 3), random(12, 4));
        let (x, gamma, beta, dy) = (wide(&x), wide(&gamma), wide(&beta), wide(&dy));
        let forward = |x: &[f64]| reference::forward(x, &gamma, &beta, 4, 1e-5).y;
        let saved = reference::forward(&x, &gamma, &beta, 4, 1e-5);
        let dx = reference::backward(&dy, &x, &gamma, &saved, 4);
        assert_gradient(&x, &dy, &dx, forward);
    }

    #[test]
    fn fast_path_agrees_with_the_specification() {
        for (rows, hidden, size) in [(0, 8, 1.0), (1, 1, 1.0), (3, 17, 1.0), (70, 384, 1.0), (5, 768, 1e4)] {
            let x: Vec<f32> = random(rows * hidden, 7).iter().map(|v| v * size).collect();
            let residual: Vec<f32> = random(rows * hidden, 8).iter().map(|v| v * size).collect();
            let (gamma, beta, dy) = (random(hidden, 9), random(hidden, 10), random(rows * hidden, 11));
            let args = Args { rows: rows as u32, hidden: hidden as u32, epsilon: 1e-12 };
            let sum: Vec<f32> = x.iter().zip(&residual).map(|(a, b)| a + b).collect();
            let wanted = reference::forward(&wide(&sum), &wide(&gamma), &wide(&beta), hidden, 1e-12);
            let got = Buffers::new().updated(&x).f32(&residual).f32(&gamma).f32(&beta);
            let got = got.output(rows * hidden).output(rows).output(rows);
            let kept = ResidualArgs { rows: args.rows, hidden: args.hidden, epsilon: args.epsilon, keep: 1 };
            let got = got.run(&RESIDUAL_FORWARD, kept);
            assert_eq!(got[0], sum);
            // One element has no variance: n is 0/√epsilon, and rounding of x − mean counts for 1e6 times as much.
            assert_close(&got[1], &wanted.y, 2e-5);
            let plain = Buffers::new().f32(&sum).f32(&gamma).f32(&beta);
            let plain = plain.output(rows * hidden).output(rows).output(rows).run(&FORWARD, args);
            assert_eq!(plain[0], got[1]);
            let dx = Buffers::new().f32(&dy).f32(&sum).f32(&gamma).f32(&got[2]).f32(&got[3]);
            let dx = dx.output(rows * hidden).run(&BACKWARD, args);
            let wanted = reference::backward(&wide(&dy), &wide(&sum), &wide(&gamma), &wanted, hidden);
            assert_close(&dx[0], &wanted, 2e-5);
        }
    }
}
