//! Rows to unit length.
//!
//! y = x / max(‖x‖, 1e-12),  dx = (dy − y·(dy·y)) / ‖x‖
//!
//! Source: PyTorch's `F.normalize`.

mod cpu;
pub mod reference;

use crate::kernel::Grid;
use crate::{Arguments, Binding, Entry, Kernel, arguments};

/// The smallest divisor.
pub const LENGTH_MIN: f32 = 1e-12;

arguments! {
    /// Scalars of both entries.
    pub struct Args {
        pub rows: u32,
        pub width: u32,
    }
}

/// `x`, `y` [rows, width]; `length` [rows].
pub static FORWARD: Entry = Entry {
    name: "normalize.forward",
    bindings: &[Binding::read("x"), Binding::write("y"), Binding::write("length")],
    arguments: Args::FIELDS,
    cuda: |args| Grid::warps(Args::of(args).rows),
    wgsl: |args| Args::of(args).rows,
    cpu: cpu::forward,
};

pub static BACKWARD: Entry = Entry {
    name: "normalize.backward",
    bindings: &[Binding::read("dy"), Binding::read("y"), Binding::read("length"), Binding::write("dx")],
    arguments: Args::FIELDS,
    cuda: |args| Grid::warps(Args::of(args).rows),
    wgsl: |args| Args::of(args).rows,
    cpu: cpu::backward,
};

pub static KERNEL: Kernel = Kernel {
    name: "normalize",
    entries: &[&FORWARD, &BACKWARD],
    cuda: include_str!("normalize.cu"),
    wgsl: include_str!("normalize.wgsl"),
};

#[cfg(test)]
mod tests {
    use crate::check::{Buffers, assert_close, assert_gradient, random, wide};

    use super::*;

    #[test]
    fn gradient_is_that_of_the_specification() {
        let (x, dy) = (wide(&random(15, 1)), wide(&random(15, 2)));
        let (y, length) = reference::forward(&x, 5);
        let dx = reference::backward(&dy, &y, &length, 5);
        assert_gradient(&x, &dy, &dx, |x| reference::forward(x, 5).0);
    }

    #[test]
    fn fast_path_agrees_with_the_specification() {
        for (rows, width) in [(0, 3), (1, 1), (4, 33), (64, 384)] {
            let (x, dy) = (random(rows * width, 3), random(rows * width, 4));
            let args = Args { rows: rows as u32, width: width as u32 };
            let got = Buffers::new().f32(&x).output(rows * width).output(rows).run(&FORWARD, args);
            let (y, length) = reference::forward(&wide(&x), width);
            assert_close(&got[0], &y, 1e-6);
            let dx =
                Buffers::new().f32(&dy).f32(&got[0]).f32(&got[1]).output(rows * width).run(&BACKWARD, args);
            assert_close(&dx[0], &reference::backward(&wide(&dy), &y, &length, width), 2e-6);
        }
        let zero =
            Buffers::new().f32(&[0.0; 4]).output(4).output(1).run(&FORWARD, Args { rows: 1, width: 4 });
        assert_eq!(zero[0], [0.0; 4]);
    }
}
