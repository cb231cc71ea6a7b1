//! Sum of squares, for the gradient's norm.
//!
//! out = Σ x², in f64 by pieces of [`PIECE`] elements, added in order of index.

mod cpu;
pub mod reference;

use crate::kernel::Grid;
use crate::{Arguments, Binding, Entry, Kernel, arguments};

/// Elements whose squares are added first: the order of additions depends on this alone.
pub const PIECE: usize = 4096;

arguments! {
    /// Scalars of `forward`.
    pub struct Args {
        pub count: u32,
    }
}

/// `x` [count], `out` [1].
pub static FORWARD: Entry = Entry {
    name: "sum_squares.forward",
    bindings: &[Binding::read("x"), Binding::write("out")],
    arguments: Args::FIELDS,
    cuda: |_| Grid::new(1, 1024),
    wgsl: |_| 1,
    cpu: cpu::forward,
};

pub static KERNEL: Kernel = Kernel {
    name: "sum_squares",
    entries: &[&FORWARD],
    cuda: include_str!("sum_squares.cu"),
    wgsl: include_str!("sum_squares.wgsl"),
};

#[cfg(test)]
mod tests {
    use crate::check::{Buffers, assert_close, random, wide};

    use super::*;

    #[test]
    fn squares_are_summed() {
        for count in [0, 1, 4097, 50_000] {
            let x = random(count, 1);
            let got = Buffers::new().f32(&x).output(1).run(&FORWARD, Args { count: count as u32 });
            assert_close(&got[0], &[reference::forward(&wide(&x))], 1e-7);
        }
        let overflow = Buffers::new().f32(&[3e38, 3e38]).output(1).run(&FORWARD, Args { count: 2 });
        assert_eq!(overflow[0], [f32::INFINITY], "a norm beyond f32 is seen, not wrapped");
        let nan = Buffers::new().f32(&[1.0, f32::NAN]).output(1).run(&FORWARD, Args { count: 2 });
        assert!(nan[0][0].is_nan());
    }
}
