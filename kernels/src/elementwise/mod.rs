//! The plain ones: y += alpha·x, and filling with a value.

mod cpu;
pub mod reference;

use crate::kernel::Grid;
use crate::{Arguments, Binding, Entry, Kernel, arguments};

arguments! {
    /// Scalars of both entries.
    pub struct Args {
        pub count: u32,
        /// `add`: factor of x. `fill`: the value.
        pub alpha: f32,
    }
}

/// y += alpha·x; both [count].
pub static ADD: Entry = Entry {
    name: "elementwise.add",
    bindings: &[Binding::input("x"), Binding::changed("y")],
    arguments: Args::FIELDS,
    cuda: |args| Grid::each(Args::of(args).count),
    wgsl: |args| Args::of(args).count.div_ceil(256),
    cpu: cpu::add,
};

/// y = alpha; f32 [count].
pub static FILL: Entry = Entry {
    name: "elementwise.fill",
    bindings: &[Binding::write("y")],
    arguments: Args::FIELDS,
    cuda: |args| Grid::each(Args::of(args).count),
    wgsl: |args| Args::of(args).count.div_ceil(256),
    cpu: cpu::fill,
};

pub static KERNEL: Kernel = Kernel {
    name: "elementwise",
    entries: &[&ADD, &FILL],
    cuda: include_str!("elementwise.cu"),
    wgsl: include_str!("elementwise.wgsl"),
};

#[cfg(test)]
mod tests {
    use crate::check::{Buffers, assert_close, random, wide};

    use super::*;

    #[test]
    fn values_are_added_and_filled() {
        for count in [0, 1, 40_000] {
            let (x, y) = (random(count, 1), random(count, 2));
            let args = Args { count: count as u32, alpha: 0.5 };
            let wanted = reference::add(0.5, &wide(&x), &wide(&y));
            assert_close(&Buffers::new().f32(&x).updated(&y).run(&ADD, args)[0], &wanted, 2e-7);
            assert_eq!(Buffers::new().output(count).run(&FILL, args)[0], reference::fill::<f32>(0.5, count));
        }
        let args = Args { count: 2, alpha: 0.0 };
        let sum = Buffers::new().f32(&[f32::NAN, f32::INFINITY]).updated(&[1.0, 1.0]).run(&ADD, args);
        assert!(sum[0].iter().all(|v| v.is_nan()), "0 times NaN or infinity stays visible");
    }
}
