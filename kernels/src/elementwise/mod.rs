//! The plain ones: y += alpha·x, and filling with a value.

use crate::simd::add_scaled;
use crate::{Arguments, Binding, Call, Entry, Kernel, multiversion};

const ELEMENTS_A_TASK: usize = 32_768;

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
    cpu: add,
};

/// y = alpha; [count].
pub static FILL: Entry = Entry {
    name: "elementwise.fill",
    bindings: &[Binding::write("y")],
    argument_bytes: size_of::<Args>(),
    cpu: fill,
};

pub static KERNEL: Kernel = Kernel { name: "elementwise", entries: &[&ADD, &FILL] };

fn add(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    let x = call.read::<f32>();
    let y = &mut call.write::<f32>()[..args.count as usize];
    call.workers.pieces(y, ELEMENTS_A_TASK, |task, y| {
        add_piece(args.alpha, &x[task * ELEMENTS_A_TASK..][..y.len()], y);
    });
}

fn fill(call: &mut Call<'_>) {
    let args: Args = call.arguments();
    call.write::<f32>()[..args.count as usize].fill(args.alpha);
}

multiversion! {
    fn add_piece(alpha: f32, x: &[f32], y: &mut [f32]) {
        add_scaled::<FMA>(alpha, x, y);
    }
}

#[cfg(test)]
mod tests {
    use crate::check::{Buffers, assert_close, random};

    use super::*;

    #[test]
    fn values_are_added_and_filled() {
        for count in [0, 1, 40_000] {
            let (x, y) = (random(count, 1), random(count, 2));
            let args = Args { count: count as u32, alpha: 0.5 };
            let wanted: Vec<f64> =
                x.iter().zip(&y).map(|(x, y)| f64::from(*y) + 0.5 * f64::from(*x)).collect();
            assert_close(&Buffers::new().f32(&x).updated(&y).run(&ADD, args)[0], &wanted, 2e-7);
            assert!(Buffers::new().output(count).run(&FILL, args)[0].iter().all(|v| *v == 0.5));
        }
    }
}
