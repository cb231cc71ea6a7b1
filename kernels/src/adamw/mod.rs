//! One step of AdamW, in place.
//!
//! g = gradient·gradient_scale;  w −= learning_rate·weight_decay·w
//! m = β₁·m + (1 − β₁)·g;  v = β₂·v + (1 − β₂)·g²
//! w −= (learning_rate / correction₁)·m / (√v / √correction₂ + epsilon)
//!
//! Source: Loshchilov and Hutter 2019, in the order of operations of PyTorch's `AdamW`.

mod cpu;
pub mod reference;

use crate::kernel::Grid;
use crate::{Arguments, Binding, Entry, Kernel, arguments};

arguments! {
    /// Scalars of `step`.
    pub struct Args {
        pub count: u32,
        /// 1 − learning_rate·weight_decay
        pub decay: f32,
        pub beta1: f32,
        pub beta2: f32,
        /// learning_rate / (1 − β₁ᵗ)
        pub step_size: f32,
        /// √(1 − β₂ᵗ)
        pub correction2_root: f32,
        pub epsilon: f32,
        /// Clipping.
        pub gradient_scale: f32,
    }
}

/// All buffers [count].
pub static STEP: Entry = Entry {
    name: "adamw.step",
    bindings: &[
        Binding::read("gradient"),
        Binding::update("parameter"),
        Binding::update("first_moment"),
        Binding::update("second_moment"),
    ],
    arguments: Args::FIELDS,
    cuda: |args| Grid::each(Args::of(args).count),
    wgsl: |args| Args::of(args).count.div_ceil(256),
    cpu: cpu::step,
};

pub static KERNEL: Kernel = Kernel {
    name: "adamw",
    entries: &[&STEP],
    cuda: include_str!("adamw.cu"),
    wgsl: include_str!("adamw.wgsl"),
};

#[cfg(test)]
mod tests {
    use crate::check::{Buffers, assert_close, random, wide};

    use super::*;

    #[test]
    fn fast_path_agrees_with_the_specification() {
        for count in [0, 1, 1000, 70_000] {
            let (gradient, parameter) = (random(count, 1), random(count, 2));
            let first: Vec<f32> = random(count, 3);
            let second: Vec<f32> = random(count, 4).iter().map(|v| v * v).collect();
            let args = Args {
                count: count as u32,
                decay: 0.999,
                beta1: 0.9,
                beta2: 0.999,
                step_size: 1e-3,
                correction2_root: 0.1,
                epsilon: 1e-8,
                gradient_scale: 0.5,
            };
            let got = Buffers::new().f32(&gradient).updated(&parameter).updated(&first).updated(&second);
            let got = got.run(&STEP, args);
            let mut state = [wide(&parameter), wide(&first), wide(&second)];
            reference::step(&wide(&gradient), &mut state, &args);
            for (got, wanted) in got.iter().zip(&state) {
                assert_close(got, wanted, 5e-7);
            }
        }
    }
}
