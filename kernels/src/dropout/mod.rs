//! Dropout by a counter-based generator: whether an element is kept depends on its name alone, never on the device,
//! the batch or the attempt that computes it.
//!
//! y = x/(1 − p) if word ≥ p·2³², else 0; word = Philox4x32-10(counter, key)[feature mod 4]
//! counter = (feature / 4, site, sample, slot·2²⁴ + token),  key = (seed_low, seed_high xor step·0x9E3779B9)
//!
//! The same entry serves backward: dx is `apply` of dy.
//!
//! Source: Salmon et al. 2011 (Philox4x32-10, known answers of Random123).

pub(crate) mod cpu;
pub mod philox;
pub mod reference;

use crate::kernel::Grid;
use crate::{Arguments, Binding, Entry, Kernel, arguments};

arguments! {
    /// Scalars of both entries.
    pub struct Args {
        pub rows: u32,
        pub features: u32,
        /// 0 ≤ p < 1
        pub probability: f32,
        pub seed_low: u32,
        pub seed_high: u32,
        pub step: u32,
        /// Stable id of module and kind.
        pub site: u32,
        /// Elements from one row of `x` to the next; rows of `y` are dense.
        pub stride: u32,
        /// Elements before the first row of `x`.
        pub offset: u32,
    }
}

impl Args {
    /// Philox blocks: four features of one row share one.
    fn quads(&self) -> u32 {
        self.rows * self.features.div_ceil(4)
    }
}

/// `x` [rows, features] (strided); `names` u32 [rows, 2]: sample id, slot·2²⁴ + token; `y` [rows, features].
pub static APPLY: Entry = Entry {
    name: "dropout.apply",
    bindings: &[Binding::input("x"), Binding::read_u32("names"), Binding::output("y")],
    arguments: Args::FIELDS,
    cuda: |args| Grid::each(Args::of(args).quads()),
    wgsl: |args| Args::of(args).quads().div_ceil(256),
    cpu: cpu::apply,
};

/// y += what `apply` gives.
pub static APPLY_ADD: Entry = Entry {
    name: "dropout.apply_add",
    bindings: &[Binding::input("x"), Binding::read_u32("names"), Binding::changed("y")],
    arguments: Args::FIELDS,
    cuda: |args| Grid::each(Args::of(args).quads()),
    wgsl: |args| Args::of(args).quads().div_ceil(256),
    cpu: cpu::apply_add,
};

pub static KERNEL: Kernel = Kernel {
    name: "dropout",
    entries: &[&APPLY, &APPLY_ADD],
    cuda: include_str!("dropout.cu"),
    wgsl: include_str!("dropout.wgsl"),
};

/// Words below this are dropped.
pub(crate) fn threshold(probability: f32) -> u32 {
    (f64::from(probability) * 4_294_967_296.0) as u32
}

/// Philox key of a seed and a step.
pub(crate) fn key(seed_low: u32, seed_high: u32, step: u32) -> [u32; 2] {
    [seed_low, seed_high ^ step.wrapping_mul(0x9e37_79b9)]
}

#[cfg(test)]
mod tests {
    use crate::check::{Buffers, random, wide};

    use super::*;

    #[test]
    fn fast_path_equals_the_specification() {
        for (rows, features, probability) in
            [(0, 4, 0.5), (1, 1, 0.5), (9, 70, 0.1), (40, 384, 0.05), (3, 8, 0.0)]
        {
            let x = random(rows * features, 1);
            let names: Vec<u32> = (0..rows as u32).flat_map(|t| [t / 2, t % 2 + (1 << 24)]).collect();
            let args = Args {
                rows: rows as u32,
                features: features as u32,
                probability,
                seed_low: 42,
                seed_high: 1,
                step: 3,
                site: 17,
                stride: features as u32,
                offset: 0,
            };
            let wanted = reference::apply(&x, &names, &args);
            let got = Buffers::new().f32(&x).u32(&names).output(rows * features).run(&APPLY, args);
            assert_eq!(got[0], wanted);
            let got = Buffers::new().f32(&x).u32(&names).updated(&x).run(&APPLY_ADD, args);
            let sum: Vec<f32> = x.iter().zip(&wanted).map(|(a, b)| a + b).collect();
            assert_eq!(got[0], sum);
        }
    }

    #[test]
    fn the_mean_is_kept_and_every_part_of_the_name_counts() {
        let x = vec![1.0f32; 100_000];
        let names: Vec<u32> = (0..1000u32).flat_map(|t| [t, 0]).collect();
        let args = Args {
            rows: 1000,
            features: 100,
            probability: 0.1,
            seed_low: 1,
            seed_high: 2,
            step: 3,
            site: 4,
            stride: 100,
            offset: 0,
        };
        let base = reference::apply(&x, &names, &args);
        let mean = wide(&base).iter().sum::<f64>() / 1e5;
        // Standard deviation of the mean: √(p/(1−p)/n) ≈ 0.001.
        assert!((mean - 1.0).abs() < 0.005, "{mean}");
        let others = [
            Args { seed_low: 9, ..args },
            Args { seed_high: 9, ..args },
            Args { step: 9, ..args },
            Args { site: 9, ..args },
        ];
        for other in others {
            assert_ne!(reference::apply(&x, &names, &other), base);
        }
    }
}
