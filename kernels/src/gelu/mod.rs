//! The activation between the two products of a feed-forward block.
//!
//! exact: y = x·(1 + erf(x/√2))/2,  dx = dy·((1 + erf(x/√2))/2 + x·exp(−x²/2)/√(2π))
//! tanh:  y = x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))/2
//! relu:  y = max(x, 0)
//!
//! Source: Hendrycks and Gimpel 2016. Which one is meant, the model's config says; they are not interchangeable.

mod cpu;
pub mod reference;

pub use cpu::in_place;

use crate::kernel::Grid;
use crate::{Arguments, Binding, Entry, Kernel, arguments};

/// Which activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    Exact = 0,
    Tanh = 1,
    Relu = 2,
}

arguments! {
    /// Scalars of both entries.
    pub struct Args {
        pub count: u32,
        /// A [`Kind`].
        pub kind: u32,
    }
}

/// `x`, `y` [count].
pub static FORWARD: Entry = Entry {
    name: "gelu.forward",
    bindings: &[Binding::input("x"), Binding::output("y")],
    arguments: Args::FIELDS,
    cuda: |args| Grid::each(Args::of(args).count.div_ceil(8)),
    wgsl: |args| Args::of(args).count.div_ceil(256),
    cpu: cpu::forward,
};

/// `x` is what went into `forward`.
pub static BACKWARD: Entry = Entry {
    name: "gelu.backward",
    bindings: &[Binding::input("dy"), Binding::input("x"), Binding::output("dx")],
    arguments: Args::FIELDS,
    cuda: |args| Grid::each(Args::of(args).count.div_ceil(8)),
    wgsl: |args| Args::of(args).count.div_ceil(256),
    cpu: cpu::backward,
};

pub static KERNEL: Kernel = Kernel {
    name: "gelu",
    entries: &[&FORWARD, &BACKWARD],
    cuda: include_str!("gelu.cu"),
    wgsl: include_str!("gelu.wgsl"),
};

#[cfg(test)]
mod tests {
    use crate::check::{Buffers, assert_close, assert_gradient, random, wide};

    use super::*;

    const KINDS: [Kind; 3] = [Kind::Exact, Kind::Tanh, Kind::Relu];

    #[test]
    fn gradients_are_those_of_the_specification() {
        let x: Vec<f64> = wide(&random(20, 1)).iter().map(|v| v * 4.0 + 0.01).collect();
        let dy = wide(&random(20, 2));
        for kind in KINDS {
            assert_gradient(&x, &dy, &reference::backward(&dy, &x, kind), |x| reference::forward(x, kind));
        }
    }

    #[test]
    fn fast_paths_agree_with_the_specification() {
        for (count, size) in [(0, 1.0), (1, 1.0), (100, 5.0), (5000, 12.0), (17, 1e30)] {
            let x: Vec<f32> = random(count, 3).iter().map(|v| v * size).collect();
            let dy = random(count, 4);
            for kind in KINDS {
                let args = Args { count: count as u32, kind: kind as u32 };
                let y = Buffers::new().f32(&x).output(count).run(&FORWARD, args);
                let dx = Buffers::new().f32(&dy).f32(&x).output(count).run(&BACKWARD, args);
                let relative = 4e-7 * f64::from(size).clamp(1.0, 10.0);
                assert_close(&y[0], &reference::forward(&wide(&x), kind), relative);
                assert_close(&dx[0], &reference::backward(&wide(&dy), &wide(&x), kind), relative * 2.0);
            }
        }
        for kind in KINDS {
            let args = Args { count: 1, kind: kind as u32 };
            let nan = Buffers::new().f32(&[f32::NAN]).output(1).run(&FORWARD, args);
            assert!(nan[0][0].is_nan() && reference::forward(&[f64::NAN], kind)[0].is_nan(), "{kind:?}");
        }
    }
}
