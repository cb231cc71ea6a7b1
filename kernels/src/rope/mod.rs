//! Rotary position embedding of query and key heads, in place.
//!
//! With D = head_dim, i < D/2 and the angle a = position·theta^(−2i/D):
//! y_i = x_i·cos a − x_{i+D/2}·sin a,  y_{i+D/2} = x_{i+D/2}·cos a + x_i·sin a
//!
//! The gradient is the rotation by −a. Angles come as a table, computed in f64 by [`table`]: in f32 the angle of
//! position 32,768 would be off by 2e-3 before its cosine is taken.
//!
//! Source: Su et al. 2021, with the halves of a head as pairs, as GPT-NeoX and all models on Hugging Face have it.

mod cpu;
pub mod reference;

use crate::kernel::Grid;
use crate::{Arguments, Binding, Entry, Kernel, arguments};

arguments! {
    /// Scalars of `apply`. Heads stand side by side from the row's first column on.
    pub struct Args {
        pub tokens: u32,
        /// Heads of a token that are rotated.
        pub heads: u32,
        /// Even.
        pub head_dim: u32,
        /// Elements from one token to the next.
        pub stride: u32,
        /// 1: by the negative angle.
        pub inverse: u32,
    }
}

impl Args {
    /// Pairs of all heads of all tokens.
    fn pairs(&self) -> u32 {
        self.tokens * self.heads * (self.head_dim / 2)
    }
}

/// `positions` u32 [tokens], rows of `table` [positions, head_dim]: cosines, then sines; `x` [tokens, stride].
pub static APPLY: Entry = Entry {
    name: "rope.apply",
    bindings: &[Binding::read_u32("positions"), Binding::read("table"), Binding::changed("x")],
    arguments: Args::FIELDS,
    cuda: |args| Grid::each(Args::of(args).pairs()),
    wgsl: |args| Args::of(args).pairs().div_ceil(256),
    cpu: cpu::apply,
};

pub static KERNEL: Kernel = Kernel {
    name: "rope",
    entries: &[&APPLY],
    cuda: include_str!("rope.cu"),
    wgsl: include_str!("rope.wgsl"),
};

/// Rows `positions` of the table, [head_dim] each: the cosines of all i, then the sines.
pub fn table(positions: std::ops::Range<usize>, head_dim: usize, theta: f64) -> Vec<f32> {
    let half = head_dim / 2;
    let frequencies: Vec<f64> = (0..half).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect();
    let mut table = Vec::with_capacity(positions.len() * head_dim);
    for position in positions {
        let angles = || frequencies.iter().map(|frequency| position as f64 * frequency);
        table.extend(angles().map(|angle| angle.cos() as f32));
        table.extend(angles().map(|angle| angle.sin() as f32));
    }
    table
}

#[cfg(test)]
mod tests {
    use crate::check::{Buffers, assert_close, assert_gradient, random, wide};

    use super::*;

    fn args(tokens: u32, heads: u32, head_dim: u32, gap: u32) -> Args {
        Args { tokens, heads, head_dim, stride: heads * head_dim + gap, inverse: 0 }
    }

    #[test]
    fn gradient_is_the_rotation_back() {
        let args = args(3, 2, 6, 1);
        let (x, dy, positions) = (wide(&random(39, 1)), wide(&random(39, 2)), [0, 7, 32_767]);
        let dx = reference::apply(&dy, &positions, 1e4, &Args { inverse: 1, ..args });
        assert_gradient(&x, &dy, &dx, |x| reference::apply(x, &positions, 1e4, &args));
    }

    #[test]
    fn fast_path_agrees_with_the_specification() {
        for (tokens, heads, head_dim, gap) in
            [(0, 1, 2, 0), (1, 1, 2, 0), (50, 6, 128, 64), (9, 3, 6, 5), (70, 2, 66, 0)]
        {
            let args = args(tokens, heads, head_dim, gap);
            let x = random((tokens * args.stride) as usize, 3);
            let positions: Vec<u32> = (0..tokens).map(|t| t * 641 % 32_768).collect();
            let table = table(0..32_768, head_dim as usize, 1e6);
            for inverse in [0, 1] {
                let args = Args { inverse, ..args };
                let got = Buffers::new().u32(&positions).f32(&table).updated(&x).run(&APPLY, args);
                assert_close(&got[0], &reference::apply(&wide(&x), &positions, 1e6, &args), 3e-7);
            }
        }
    }

    #[test]
    fn rows_of_the_table_do_not_depend_on_where_it_starts() {
        let (all, part) = (table(0..100, 8, 1e4), table(40..60, 8, 1e4));
        assert_eq!(all[40 * 8..60 * 8], part);
        assert_eq!(all[..8], [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    }
}
