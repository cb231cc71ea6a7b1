//! Normalisation by the root mean square of each query and key head, inside the buffer that holds q, k and v.
//!
//! For each token and each head of q (factors `query_gamma`) and of k (`key_gamma`), with D = head_dim:
//! r = 1/√(Σ x² / D + epsilon),  y = x·r·gamma;  dx = r·(g − n·mean(g·n)),  g = dy·gamma,  n = x·r
//!
//! A token's row is heads·D columns of q, kv_heads·D of k, kv_heads·D of v. v passes through unchanged.
//!
//! Source: Qwen3 (2025), whose q_norm and k_norm stand before the rotation; the norm is that of `rms_norm`.

mod cpu;
pub mod reference;

use crate::kernel::Grid;
use crate::{Arguments, Binding, Entry, Kernel, arguments};

arguments! {
    /// Scalars of both entries.
    pub struct Args {
        pub tokens: u32,
        pub heads: u32,
        pub kv_heads: u32,
        pub head_dim: u32,
        pub epsilon: f32,
    }
}

impl Args {
    /// Heads of a token that are normalised.
    fn normalised(&self) -> u32 {
        self.heads + self.kv_heads
    }

    /// Heads of a token.
    fn all(&self) -> u32 {
        self.heads + 2 * self.kv_heads
    }
}

/// `x`, `y` [tokens, (heads + 2·kv_heads)·head_dim]; `query_gamma`, `key_gamma` [head_dim];
/// `reciprocal_root` [tokens, heads + kv_heads].
pub static FORWARD: Entry = Entry {
    name: "head_norm.forward",
    bindings: &[
        Binding::input("x"),
        Binding::read("query_gamma"),
        Binding::read("key_gamma"),
        Binding::output("y"),
        Binding::write("reciprocal_root"),
    ],
    arguments: Args::FIELDS,
    cuda: |args| Grid::warps(Args::of(args).tokens * Args::of(args).all()),
    wgsl: |args| Args::of(args).tokens * Args::of(args).all(),
    cpu: cpu::forward,
};

/// `gradient` is dy and becomes dx, in place; `x` is what went into `forward`.
pub static BACKWARD: Entry = Entry {
    name: "head_norm.backward",
    bindings: &[
        Binding::changed("gradient"),
        Binding::input("x"),
        Binding::read("query_gamma"),
        Binding::read("key_gamma"),
        Binding::read("reciprocal_root"),
    ],
    arguments: Args::FIELDS,
    cuda: |args| Grid::warps(Args::of(args).tokens * Args::of(args).normalised()),
    wgsl: |args| Args::of(args).tokens * Args::of(args).normalised(),
    cpu: cpu::backward,
};

pub static KERNEL: Kernel = Kernel {
    name: "head_norm",
    entries: &[&FORWARD, &BACKWARD],
    cuda: include_str!("head_norm.cu"),
    wgsl: include_str!("head_norm.wgsl"),
};

#[cfg(test)]
mod tests {
    use crate::check::{Buffers, assert_close, assert_gradient, random, wide};

    use super::*;

    fn args(tokens: u32, heads: u32, kv_heads: u32, head_dim: u32) -> Args {
        Args { tokens, heads, kv_heads, head_dim, epsilon: 1e-6 }
    }

    #[test]
    fn gradient_is_that_of_the_specification() {
        let args = args(3, 4, 2, 3);
        let count = 3 * 8 * 3;
        let (x, dy) = (wide(&random(count, 1)), wide(&random(count, 2)));
        let gammas = [wide(&random(3, 3)), wide(&random(3, 4))];
        let gammas = [&gammas[0][..], &gammas[1][..]];
        let dx = reference::backward(&dy, &x, gammas, &args);
        assert_gradient(&x, &dy, &dx, |x| reference::forward(x, gammas, &args).0);
    }

    #[test]
    fn fast_path_agrees_with_the_specification() {
        for (tokens, heads, kv_heads, head_dim) in
            [(0, 2, 1, 4), (1, 1, 1, 1), (5, 4, 2, 6), (40, 16, 8, 128), (3, 3, 1, 33)]
        {
            let args = args(tokens, heads, kv_heads, head_dim);
            let (dim, count) = (head_dim as usize, (tokens * args.all() * head_dim) as usize);
            let (x, dy) = (random(count, 5), random(count, 6));
            let (query, key) = (random(dim, 7), random(dim, 8));
            let (wide_query, wide_key) = (wide(&query), wide(&key));
            let gammas = [&wide_query[..], &wide_key[..]];
            let (wanted, roots) = reference::forward(&wide(&x), gammas, &args);
            let got = Buffers::new().f32(&x).f32(&query).f32(&key);
            let got = got.output(count).output(roots.len()).run(&FORWARD, args);
            assert_close(&got[0], &wanted, 2e-6);
            // A head of one element may be close to zero: its reciprocal root is as large as 1/√epsilon.
            assert_close(&got[1], &roots, 2e-6);
            let dx = Buffers::new().updated(&dy).f32(&x).f32(&query).f32(&key).f32(&got[1]);
            let dx = dx.run(&BACKWARD, args);
            assert_close(&dx[0], &reference::backward(&wide(&dy), &wide(&x), gammas, &args), 4e-6);
        }
    }

    #[test]
    fn values_pass_through_unchanged() {
        let args = args(2, 1, 1, 2);
        let x = random(12, 9);
        let got = Buffers::new().f32(&x).f32(&[2.0; 2]).f32(&[3.0; 2]).output(12).output(4);
        let got = got.run(&FORWARD, args);
        assert_eq!((&got[0][4..6], &got[0][10..]), (&x[4..6], &x[10..]));
        let dx = Buffers::new().updated(&x).f32(&x).f32(&[2.0; 2]).f32(&[3.0; 2]).f32(&got[1]);
        let dx = dx.run(&BACKWARD, args);
        assert_eq!((&dx[0][4..6], &dx[0][10..]), (&x[4..6], &x[10..]));
        assert_ne!(dx[0][..4], x[..4]);
    }
}
