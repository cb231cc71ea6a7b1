//! One vector a text from the vectors of its tokens.
//!
//! mean: Σ x / n;  mean_sqrt_length: Σ x / √n;  weighted_mean: Σ i·x_i / Σ i (i from 1);  cls: x_1;
//! last_token: x_n;  max: the largest of each feature, NaN if one is NaN. A text without tokens gives zeros.
//!
//! Source: sentence-transformers' `Pooling` module.

mod cpu;
pub mod reference;

use crate::kernel::Grid;
use crate::{Arguments, Binding, Entry, Kernel, arguments};

/// How a text's tokens become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    Mean = 0,
    Cls = 1,
    LastToken = 2,
    Max = 3,
    MeanSqrtLength = 4,
    WeightedMean = 5,
}

impl Kind {
    pub const ALL: [Kind; 6] =
        [Kind::Mean, Kind::Cls, Kind::LastToken, Kind::Max, Kind::MeanSqrtLength, Kind::WeightedMean];

    /// Weight of token `index` of `length` in the sum; every kind but `Max` is a weighted sum.
    pub(crate) fn weight(self, index: usize, length: usize) -> f64 {
        let n = length as f64;
        match self {
            Kind::Mean => 1.0 / n,
            Kind::Cls => f64::from(u8::from(index == 0)),
            Kind::LastToken => f64::from(u8::from(index + 1 == length)),
            Kind::Max => 0.0,
            Kind::MeanSqrtLength => 1.0 / n.sqrt(),
            Kind::WeightedMean => (index + 1) as f64 / (n * (n + 1.0) / 2.0),
        }
    }
}

arguments! {
    /// Scalars of both entries.
    pub struct Args {
        pub texts: u32,
        pub hidden: u32,
        /// A [`Kind`].
        pub kind: u32,
    }
}

/// `x` [tokens, hidden]; `cumulative_lengths` u32 [texts + 1]; `out` [texts, hidden].
pub static FORWARD: Entry = Entry {
    name: "pool.forward",
    bindings: &[Binding::input("x"), Binding::read_u32("cumulative_lengths"), Binding::write("out")],
    arguments: Args::FIELDS,
    cuda: |args| Grid::new(Args::of(args).texts * Args::of(args).hidden.div_ceil(32), 256),
    wgsl: |args| Args::of(args).texts,
    cpu: cpu::forward,
};

/// `x` is what went into `forward` (used by `max` alone); `dx` [tokens, hidden].
pub static BACKWARD: Entry = Entry {
    name: "pool.backward",
    bindings: &[
        Binding::read("dout"),
        Binding::input("x"),
        Binding::read_u32("cumulative_lengths"),
        Binding::output("dx"),
    ],
    arguments: Args::FIELDS,
    cuda: |args| Grid::new(Args::of(args).texts * Args::of(args).hidden.div_ceil(32), 256),
    wgsl: |args| Args::of(args).texts,
    cpu: cpu::backward,
};

pub static KERNEL: Kernel = Kernel {
    name: "pool",
    entries: &[&FORWARD, &BACKWARD],
    cuda: include_str!("pool.cu"),
    wgsl: include_str!("pool.wgsl"),
};

#[cfg(test)]
mod tests {
    use crate::check::{Buffers, assert_close, assert_gradient, random, wide};

    use super::*;

    const LENGTHS: [u32; 5] = [0, 3, 4, 4, 12];

    #[test]
    fn gradients_are_those_of_the_specification() {
        let (x, dout) = (wide(&random(36, 1)), wide(&random(12, 2)));
        for kind in Kind::ALL {
            let dx = reference::backward(&dout, &x, &LENGTHS, 3, kind);
            assert_gradient(&x, &dout, &dx, |x| reference::forward(x, &LENGTHS, 3, kind));
        }
    }

    #[test]
    fn fast_path_agrees_with_the_specification() {
        for hidden in [1, 5, 384] {
            let (x, dout) = (random(12 * hidden, 3), random(4 * hidden, 4));
            for kind in Kind::ALL {
                let args = Args { texts: 4, hidden: hidden as u32, kind: kind as u32 };
                let got = Buffers::new().f32(&x).u32(&LENGTHS).output(4 * hidden).run(&FORWARD, args);
                assert_close(&got[0], &reference::forward(&wide(&x), &LENGTHS, hidden, kind), 1e-6);
                let dx =
                    Buffers::new().f32(&dout).f32(&x).u32(&LENGTHS).output(12 * hidden).run(&BACKWARD, args);
                assert_close(
                    &dx[0],
                    &reference::backward(&wide(&dout), &wide(&x), &LENGTHS, hidden, kind),
                    1e-6,
                );
            }
        }
    }

    #[test]
    fn nan_comes_through_every_kind() {
        // Three tokens of two features; NaN is last, first or in the middle of the first feature.
        for place in 0..3 {
            let mut x = [1.0f32, 1.0, 2.0, 2.0, 3.0, 3.0];
            x[place * 2] = f32::NAN;
            for kind in Kind::ALL {
                let args = Args { texts: 1, hidden: 2, kind: kind as u32 };
                let got = Buffers::new().f32(&x).u32(&[0, 3]).output(2).run(&FORWARD, args);
                let wanted = reference::forward(&wide(&x), &[0, 3], 2, kind);
                let skipped = kind == Kind::Cls && place != 0 || kind == Kind::LastToken && place != 2;
                assert_eq!(got[0][0].is_nan(), !skipped, "{kind:?} {place}");
                assert_eq!(wanted[0].is_nan(), !skipped, "{kind:?} {place}");
                // The other feature is sound.
                assert_close(&got[0][1..], &wanted[1..], 1e-6);
                if kind == Kind::Max {
                    let dx = Buffers::new().f32(&[5.0, 7.0]).f32(&x).u32(&[0, 3]).output(6);
                    let dx = dx.run(&BACKWARD, args);
                    let wanted = reference::backward(&[5.0, 7.0], &wide(&x), &[0, 3], 2, kind);
                    assert_eq!(wide(&dx[0]), wanted);
                }
            }
        }
    }
}
