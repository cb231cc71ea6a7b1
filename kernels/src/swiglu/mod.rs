//! The gated activation between the products of a feed-forward block: silu(gate)·up.
//!
//! s = 1/(1 + exp(−g)),  y = g·s·u
//! dg = dy·u·s·(1 + g·(1 − s)),  du = dy·g·s
//!
//! A row of `x` is `width` columns of the gate g, then as many of u.
//!
//! Source: Shazeer 2020 (SwiGLU with β = 1, without biases of its own).

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

/// `x` [rows, 2·width]; `y` [rows, width].
pub static FORWARD: Entry = Entry {
    name: "swiglu.forward",
    bindings: &[Binding::input("x"), Binding::output("y")],
    arguments: Args::FIELDS,
    cuda: |args| Grid::each(Args::of(args).rows * Args::of(args).width),
    wgsl: |args| (Args::of(args).rows * Args::of(args).width).div_ceil(256),
    cpu: cpu::forward,
};

/// `x` is what went into `forward`; `dx` [rows, 2·width].
pub static BACKWARD: Entry = Entry {
    name: "swiglu.backward",
    bindings: &[Binding::input("dy"), Binding::input("x"), Binding::output("dx")],
    arguments: Args::FIELDS,
    cuda: |args| Grid::each(Args::of(args).rows * Args::of(args).width),
    wgsl: |args| (Args::of(args).rows * Args::of(args).width).div_ceil(256),
    cpu: cpu::backward,
};

pub static KERNEL: Kernel = Kernel {
    name: "swiglu",
    entries: &[&FORWARD, &BACKWARD],
    cuda: include_str!("swiglu.cu"),
    wgsl: include_str!("swiglu.wgsl"),
};

#[cfg(test)]
mod tests {
    use crate::check::{Buffers, assert_close, assert_gradient, random, wide};

    use super::*;

    #[test]
    fn gradient_is_that_of_the_specification() {
        let x: Vec<f64> = wide(&random(30, 1)).iter().map(|v| v * 4.0).collect();
        let dy = wide(&random(15, 2));
        assert_gradient(&x, &dy, &reference::backward(&dy, &x, 5), |x| reference::forward(x, 5));
    }

    #[test]
    fn fast_path_agrees_with_the_specification() {
        for (rows, width, size) in [(0, 4, 1.0), (1, 1, 1.0), (3, 33, 5.0), (70, 300, 12.0), (2, 17, 1e15)] {
            let x: Vec<f32> = random(rows * 2 * width, 3).iter().map(|v| v * size).collect();
            let dy = random(rows * width, 4);
            let args = Args { rows: rows as u32, width: width as u32 };
            let y = Buffers::new().f32(&x).output(rows * width).run(&FORWARD, args);
            assert_close(&y[0], &reference::forward(&wide(&x), width), 1e-6);
            let dx = Buffers::new().f32(&dy).f32(&x).output(rows * 2 * width).run(&BACKWARD, args);
            assert_close(&dx[0], &reference::backward(&wide(&dy), &wide(&x), width), 2e-6);
        }
    }

    #[test]
    fn far_gates_close_or_open_and_nan_stays_visible() {
        let args = Args { rows: 1, width: 4 };
        let x = [-1e30, 1e30, f32::NAN, 0.0, 1.0, 1.0, 1.0, f32::NAN];
        let y = Buffers::new().f32(&x).output(4).run(&FORWARD, args);
        assert_eq!(y[0][..2], [0.0, 1e30]);
        assert!(y[0][2].is_nan() && y[0][3].is_nan());
        let dx = Buffers::new().f32(&[1.0; 4]).f32(&x).output(8).run(&BACKWARD, args);
        assert_eq!((dx[0][0], dx[0][1], dx[0][4], dx[0][5]), (0.0, 1.0, 0.0, 1e30));
        assert!(dx[0][2].is_nan() && dx[0][6].is_nan());
    }
}
