//! The plain ones: y += alpha·x, and filling with a value.

mod cpu;
pub mod reference;

use crate::{Arguments, Binding, Entry, Kernel};

/// Scalars of both entries.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Args {
    pub count: u32,
    /// `add`: factor of x. `fill`: the value.
    pub alpha: f32,
}

impl Arguments for Args {}

/// y += alpha·x; both [count].
pub static ADD: Entry = Entry {
    name: "elementwise.add",
    bindings: &[Binding::read("x"), Binding::update("y")],
    argument_bytes: size_of::<Args>(),
    cpu: cpu::add,
};

/// y = alpha; [count].
pub static FILL: Entry = Entry {
    name: "elementwise.fill",
    bindings: &[Binding::write("y")],
    argument_bytes: size_of::<Args>(),
    cpu: cpu::fill,
};

pub static KERNEL: Kernel = Kernel { name: "elementwise", entries: &[&ADD, &FILL] };

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
