//! Softmax attention within each text of a packed batch.
//!
//! s = scale·q·kᵀ (−∞ above the diagonal if causal),  p = softmax(s),  out = p·v,  ℓ = log Σ exp(s)
//! dv = pᵀ·do,  dp = do·vᵀ,  ds = p∘(dp − a),  a = Σ_d do∘out,  dq = scale·ds·k,  dk = scale·dsᵀ·q
//!
//! q, k, v are columns of one buffer [tokens, stride]: heads·head_dim columns of q at `query`, kv_heads·head_dim of
//! k at `key` and of v at `value`. Memory grows linearly with the length of a text: no score matrix is kept.
//!
//! Source: Vaswani et al. 2017; the backward through ℓ is that of FlashAttention (Dao et al. 2022, appendix B).

mod cpu;
pub mod reference;

use crate::kernel::{Grid, TensorFunction};
use crate::{Arguments, Binding, Entry, Kernel, arguments};

arguments! {
    /// Scalars of all entries.
    pub struct Args {
        pub tokens: u32,
        pub texts: u32,
        /// Tokens of the longest text; devices start so many tiles for each.
        pub longest: u32,
        pub heads: u32,
        /// `heads` must be a multiple.
        pub kv_heads: u32,
        pub head_dim: u32,
        /// Columns of a row of the buffer that holds q, k and v.
        pub stride: u32,
        pub query: u32,
        pub key: u32,
        pub value: u32,
        pub scale: f32,
        /// 1: a token sees itself and what stands before it.
        pub causal: u32,
        /// Dropout of p; 0 is none. The key is that of `dropout`, with the position of the key token as feature.
        pub dropout: f32,
        pub seed_low: u32,
        pub seed_high: u32,
        pub step: u32,
        /// Of the layer's attention; [`head_site`] gives those of the heads.
        pub site: u32,
    }
}

/// Queries of one tile on a device.
const TILE: u32 = 64;

fn tiles(args: Args) -> u32 {
    args.longest.div_ceil(TILE) * args.texts * args.heads
}

fn forward_grid(args: Args) -> Grid {
    // 16 rows of q, k, v and the output, each with one element more, and the probabilities.
    let shared_bytes = (4 * 16 * (args.head_dim + 1) + 256) * 4;
    let grid = Grid { shared_bytes, ..Grid::new(tiles(args), 128) };
    // q, and two stages of k and v.
    with_tensor_function(args, grid, 5 * TILE * (args.head_dim + 8) * 2, |(forward, _)| forward)
}

/// Tiles of queries, then tiles of keys.
fn backward_grid(args: Args) -> Grid {
    let blocks = tiles(args) + args.longest.div_ceil(TILE) * args.texts * args.kv_heads;
    // For keys: 16 rows of k, v, q, dout, dk and dv, two small matrices and two columns.
    let shared_bytes = (6 * 16 * (args.head_dim + 1) + 2 * 256 + 2 * 16) * 4;
    let grid = Grid { shared_bytes, ..Grid::new(blocks, 128) };
    // Two tiles of the block's own rows; two stages of two steps of others, and of two f32 a query.
    let step = if args.head_dim > 64 { TILE / 2 } else { TILE };
    let tensor_bytes = (2 * TILE + 4 * step) * (args.head_dim + 8) * 2 + 2 * step * 8;
    with_tensor_function(args, grid, tensor_bytes, |(_, backward)| backward)
}

/// Heads of 32, 64 and 128 dimensions have functions for tensor cores, which read eight elements at a time.
fn with_tensor_function(
    args: Args,
    grid: Grid,
    shared_bytes: u32,
    which: fn((&'static str, &'static str)) -> &'static str,
) -> Grid {
    let names = match args.head_dim {
        32 => ("attention_forward_tensor_32", "attention_backward_tensor_32"),
        64 => ("attention_forward_tensor_64", "attention_backward_tensor_64"),
        128 => ("attention_forward_tensor_128", "attention_backward_tensor_128"),
        _ => return grid,
    };
    let in_eights = [args.stride, args.query, args.key, args.value].iter().all(|n| n.is_multiple_of(8));
    let (blocks, threads) = (grid.blocks, grid.threads);
    let tensor = in_eights.then(|| TensorFunction { name: which(names), blocks, threads, shared_bytes });
    Grid { tensor, ..grid }
}

/// In WGSL: tiles of queries for dq, then tiles of keys for dk, then those for dv.
fn backward_workgroups(args: Args) -> u32 {
    tiles(args) + 2 * args.longest.div_ceil(TILE) * args.texts * args.kv_heads
}

/// Site of the draws of one head, apart from every site below 2¹⁶: heads stand in the upper half. A `site` in
/// [`Args`] is below 2¹⁶, and so is the number of heads.
pub fn head_site(site: u32, head: u32) -> u32 {
    site | head << 16
}

/// `qkv` [tokens, stride]; `cumulative_lengths` u32 [texts + 1]; `rows` u32 [tokens, 2] as for `dropout`;
/// `out` [tokens, heads·head_dim]; `log_sum_exp` [tokens, heads].
pub static FORWARD: Entry = Entry {
    name: "attention.forward",
    bindings: &[
        Binding::input("qkv"),
        Binding::read_u32("cumulative_lengths"),
        Binding::read_u32("rows"),
        Binding::output("out"),
        Binding::write("log_sum_exp"),
    ],
    arguments: Args::FIELDS,
    cuda: |args| forward_grid(Args::of(args)),
    wgsl: |args| tiles(Args::of(args)),
    cpu: cpu::forward,
};

/// `dout`, `out` [tokens, heads·head_dim]; `along` [tokens, heads]: the a of the backward formula, taken once for all
/// that need it.
pub static ALONG: Entry = Entry {
    name: "attention.along",
    bindings: &[Binding::input("dout"), Binding::input("out"), Binding::write("along")],
    arguments: Args::FIELDS,
    cuda: |args| Grid::each(Args::of(args).tokens * Args::of(args).heads),
    wgsl: |args| (Args::of(args).tokens * Args::of(args).heads).div_ceil(64),
    cpu: cpu::along,
};

/// `along` [tokens, heads] is that of [`ALONG`]; `dqkv` [tokens, stride] gets dq, dk and dv in the places of q, k and v.
pub static BACKWARD: Entry = Entry {
    name: "attention.backward",
    bindings: &[
        Binding::input("dout"),
        Binding::input("qkv"),
        Binding::read("along"),
        Binding::read("log_sum_exp"),
        Binding::read_u32("cumulative_lengths"),
        Binding::read_u32("rows"),
        Binding::output("dqkv"),
    ],
    arguments: Args::FIELDS,
    cuda: |args| backward_grid(Args::of(args)),
    wgsl: |args| backward_workgroups(Args::of(args)),
    cpu: cpu::backward,
};

pub static KERNEL: Kernel = Kernel {
    name: "attention",
    entries: &[&FORWARD, &ALONG, &BACKWARD],
    cuda: concat!(include_str!("attention.cu"), include_str!("attention_tensor.cu")),
    wgsl: include_str!("attention.wgsl"),
};

#[cfg(test)]
mod tests {
    use crate::check::{Buffers, assert_close, assert_gradient, random, wide};

    use super::*;

    fn args(lengths: &[u32], heads: u32, kv_heads: u32, head_dim: u32, causal: u32, dropout: f32) -> Args {
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        Args {
            tokens: *lengths.last().unwrap(),
            texts: lengths.len() as u32 - 1,
            longest: lengths.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0),
            heads,
            kv_heads,
            head_dim,
            stride: q + 2 * kv,
            query: 0,
            key: q,
            value: q + kv,
            scale: 1.0 / (head_dim as f32).sqrt(),
            causal,
            dropout,
            seed_low: 5,
            seed_high: 6,
            step: 7,
            site: 8,
        }
    }

    fn rows(tokens: u32) -> Vec<u32> {
        (0..tokens).flat_map(|t| [t / 3, t % 3]).collect()
    }

    #[test]
    fn gradients_are_those_of_the_specification() {
        let lengths = [0, 3, 3, 7];
        for (causal, dropout) in [(0, 0.0), (1, 0.0), (0, 0.4)] {
            let args = args(&lengths, 2, 1, 3, causal, dropout);
            let x = wide(&random(7 * args.stride as usize, 1));
            let dout = wide(&random(7 * 6, 2));
            let rows = rows(7);
            let saved = reference::forward(&x, &lengths, &rows, &args);
            let along = reference::along(&dout, &saved.out, 3);
            let statistics = [&along[..], &saved.log_sum_exp];
            let dx = reference::backward(&dout, &x, statistics, &lengths, &rows, &args);
            assert_gradient(&x, &dout, &dx, |x| reference::forward(x, &lengths, &rows, &args).out);
        }
    }

    #[test]
    fn fast_path_agrees_with_the_specification() {
        type Shape = (&'static [u32], u32, u32, u32, u32, f32);
        let shapes: [Shape; 7] = [
            (&[0], 1, 1, 4, 0, 0.0),
            (&[0, 1], 1, 1, 1, 0, 0.0),
            (&[0, 0, 14, 15, 31], 12, 12, 32, 0, 0.0),
            (&[0, 5, 40], 4, 2, 64, 1, 0.0),
            (&[0, 130], 2, 2, 32, 0, 0.0),
            (&[0, 33, 50], 2, 1, 24, 1, 0.3),
            (&[0, 20], 1, 1, 128, 0, 0.1),
        ];
        for (lengths, heads, kv_heads, head_dim, causal, dropout) in shapes {
            let args = args(lengths, heads, kv_heads, head_dim, causal, dropout);
            let (tokens, stride) = (args.tokens as usize, args.stride as usize);
            let hidden = (heads * head_dim) as usize;
            let (x, dout) = (random(tokens * stride, 3), random(tokens * hidden, 4));
            let rows = rows(args.tokens);
            let got = Buffers::new().f32(&x).u32(lengths).u32(&rows);
            let got = got.output(tokens * hidden).output(tokens * heads as usize).run(&FORWARD, args);
            let wanted = reference::forward(&wide(&x), lengths, &rows, &args);
            assert_close(&got[0], &wanted.out, 2e-6);
            assert_close(&got[1], &wanted.log_sum_exp, 2e-6);
            let along = Buffers::new().f32(&dout).f32(&got[0]).output(tokens * heads as usize);
            let along = along.run(&ALONG, args);
            let dx = Buffers::new().f32(&dout).f32(&x).f32(&along[0]).f32(&got[1]).u32(lengths).u32(&rows);
            let dx = dx.output(tokens * stride).run(&BACKWARD, args);
            let along_wanted = reference::along(&wide(&dout), &wanted.out, head_dim as usize);
            let statistics = [&along_wanted[..], &wanted.log_sum_exp];
            let wanted = reference::backward(&wide(&dout), &wide(&x), statistics, lengths, &rows, &args);
            assert_close(&dx[0], &wanted, 5e-6);
        }
    }

    #[test]
    fn texts_and_columns_that_overlap_are_refused() {
        let sound = args(&[0, 2, 4], 2, 1, 2, 0, 0.0);
        let run = |args: Args, lengths: &[u32]| {
            let buffers = Buffers::new().f32(&random(4 * 8, 1)).u32(lengths).u32(&rows(4));
            let buffers = buffers.output(16).output(8);
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| buffers.run(&FORWARD, args))).is_ok()
        };
        assert!(run(sound, &[0, 2, 4]));
        assert!(!run(sound, &[0, 3, 2]) && !run(sound, &[0, 2, 5]));
        for args in [
            Args { key: 3, ..sound },
            Args { value: sound.key, ..sound },
            Args { value: sound.stride - 1, ..sound },
            Args { heads: 3, kv_heads: 2, head_dim: 1, ..sound },
        ] {
            assert!(!run(args, &[0, 2, 4]), "{args:?}");
        }
    }

    #[test]
    fn large_scores_do_not_overflow_and_nan_stays_visible() {
        let args = args(&[0, 3], 1, 1, 2, 0, 0.0);
        let mut x = vec![200.0f32; 18];
        let run = |x: &[f32]| {
            Buffers::new().f32(x).u32(&[0, 3]).u32(&rows(3)).output(6).output(3).run(&FORWARD, args)
        };
        assert!(run(&x)[0].iter().all(|v| (v - 200.0).abs() < 1e-3));
        x[0] = f32::NAN;
        assert!(run(&x)[0][0].is_nan());
    }
}
