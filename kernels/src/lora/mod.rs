//! The three skinny products of a low-rank adapter. m is A [rank, in] or Bᵀ [rank, out]: both have `rank` rows, so
//! forward and backward of both factors need only these.
//!
//! dot:     h[t, r]  = Σ_n x[t, n]·m[r, n]                    h = x·Aᵀ;    dh = dy·B
//! expand:  y[t, n] += scale·Σ_r h[t, r]·m[r, n]              y += s·h·Bᵀ;  dx += s·dh·A
//! outer:   g[r, n] += scale·Σ_t h[t, r]·x[t, n]              dA += s·dhᵀ·x; dBᵀ += s·hᵀ·dy
//!
//! Source: Hu et al. 2021 (LoRA); s = alpha/rank, or alpha/√rank (rsLoRA, Kalajdzievski 2023).

mod cpu;
pub mod reference;

use crate::kernel::{Grid, TensorFunction};
use crate::{Arguments, Binding, Entry, Kernel, arguments};

arguments! {
    /// Scalars of all entries. Rows of `x` and `y` may be parts of wider rows.
    pub struct Args {
        pub rows: u32,
        pub rank: u32,
        pub width: u32,
        /// Elements from one row of `x` or `y` to the next.
        pub stride: u32,
        /// Elements before the first row of `x` or `y`.
        pub offset: u32,
        pub scale: f32,
    }
}

/// Rows, and columns, of a tile on tensor cores.
const TILE: u32 = 64;
/// Sums that blocks of `outer` leave for each other.
const OUTER_PARTS_MAX: u32 = 264;
/// Ranks that the functions for tensor cores take.
const RANKS_MAX: u32 = 64;

fn dot_grid(args: Args) -> Grid {
    // A warp four rows.
    let grid = Grid::warps(args.rows.div_ceil(4));
    // Eight warps with two stages of 32 rows.
    let shared_bytes = 8 * 2 * 32 * (TILE + 8) * 2;
    let tensor = TensorFunction {
        name: "lora_dot_tensor",
        blocks: args.rows.div_ceil(32),
        threads: 256,
        shared_bytes,
    };
    with_tensor_function(args, grid, tensor)
}

fn expand_grid(args: Args) -> Grid {
    // A thread four columns of eight rows.
    let grid = Grid::each(args.rows.div_ceil(8) * args.width.div_ceil(4));
    let blocks = args.rows.div_ceil(TILE) * args.width.div_ceil(TILE);
    let tensor = TensorFunction { name: "lora_expand_tensor", blocks, threads: 128, shared_bytes: 0 };
    with_tensor_function(args, grid, tensor)
}

fn outer_grid(args: Args) -> Grid {
    let grid = Grid::new(args.width.div_ceil(32), 1024);
    // Eight warps with four stages of 16 rows of x, and 16 rows of h for 32 ranks twice.
    let shared_bytes = 8 * (4 * 16 * (TILE + 8) + 2 * 16 * (32 + 8)) * 2;
    let tensor = TensorFunction {
        name: "lora_outer_tensor",
        blocks: args.width.div_ceil(TILE) * outer_shares(args),
        threads: 256,
        shared_bytes,
    };
    with_tensor_function(args, grid, tensor)
}

/// Blocks that share the rows of a tile of columns: enough for two on every multiprocessor of a large device, each with
/// work for its eight warps twice over.
fn outer_shares(args: Args) -> u32 {
    let most = OUTER_PARTS_MAX / args.width.div_ceil(TILE).max(1);
    most.min(args.rows / (2 * 8 * 16)).max(1)
}

/// The functions for tensor cores read eight elements at a time.
fn with_tensor_function(args: Args, grid: Grid, tensor: TensorFunction) -> Grid {
    let in_eights = [args.width, args.stride, args.offset].iter().all(|n| n.is_multiple_of(8));
    Grid { tensor: (in_eights && args.rank <= RANKS_MAX).then_some(tensor), ..grid }
}

/// `x` [rows, width] (strided), `m` [rank, width], `h` [rows, rank].
pub static DOT: Entry = Entry {
    name: "lora.dot",
    bindings: &[Binding::input("x"), Binding::read("m"), Binding::write("h")],
    arguments: Args::FIELDS,
    cuda: |args| dot_grid(Args::of(args)),
    wgsl: |args| Args::of(args).rows,
    cpu: cpu::dot,
};

/// `h` [rows, rank], `m` [rank, width], `y` [rows, width] (strided).
pub static EXPAND: Entry = Entry {
    name: "lora.expand",
    bindings: &[Binding::read("h"), Binding::read("m"), Binding::changed("y")],
    arguments: Args::FIELDS,
    cuda: |args| expand_grid(Args::of(args)),
    wgsl: |args| Args::of(args).rows,
    cpu: cpu::expand,
};

/// `h` [rows, rank], `x` [rows, width] (strided), `g` [rank, width].
pub static OUTER: Entry = Entry {
    name: "lora.outer",
    bindings: &[Binding::read("h"), Binding::input("x"), Binding::update("g")],
    arguments: Args::FIELDS,
    cuda: |args| outer_grid(Args::of(args)),
    wgsl: |args| Args::of(args).width.div_ceil(16) * Args::of(args).rank.div_ceil(8),
    cpu: cpu::outer,
};

pub static KERNEL: Kernel = Kernel {
    name: "lora",
    entries: &[&DOT, &EXPAND, &OUTER],
    cuda: concat!(include_str!("lora.cu"), include_str!("lora_tensor.cu")),
    wgsl: include_str!("lora.wgsl"),
};

#[cfg(test)]
mod tests {
    use crate::check::{Buffers, assert_close, assert_gradient, random, wide};

    use super::*;

    #[test]
    fn the_three_products_are_each_others_gradients() {
        let (x, m, dh) = (wide(&random(12, 1)), wide(&random(8, 2)), wide(&random(6, 3)));
        // rows 3, width 4, rank 2
        let dx = reference::expand(&dh, &m, (2, 4), 1.0);
        assert_gradient(&x, &dh, &dx, |x| reference::dot(x, &m, (2, 4)));
        let dm = reference::outer(&dh, &x, (2, 4), 1.0);
        assert_gradient(&m, &dh, &dm, |m| reference::dot(&x, m, (2, 4)));
    }

    #[test]
    fn gradients_of_expand_are_dot_and_outer() {
        let (h, m, dy) = (wide(&random(6, 4)), wide(&random(8, 5)), wide(&random(12, 6)));
        let scaled: Vec<f64> = dy.iter().map(|d| 0.75 * d).collect();
        let dh = reference::dot(&scaled, &m, (2, 4));
        assert_gradient(&h, &dy, &dh, |h| reference::expand(h, &m, (2, 4), 0.75));
        let dm = reference::outer(&h, &dy, (2, 4), 0.75);
        assert_gradient(&m, &dy, &dm, |m| reference::expand(&h, m, (2, 4), 0.75));
    }

    /// y = s·(dropout(x)·Aᵀ)·Bᵀ with inputs 4, rank 2, outputs 3, by the rules that `ops` composes.
    #[test]
    fn gradients_of_the_whole_adapter_are_composed_of_the_three_products_and_dropout() {
        use crate::dropout;

        let (x, a, b) = (wide(&random(20, 7)), wide(&random(8, 8)), wide(&random(6, 9)));
        let (dy, scale) = (wide(&random(15, 10)), 1.5);
        let names: Vec<u32> = (0..5).flat_map(|t| [t / 2, t % 2]).collect();
        let dropping = dropout::Args {
            rows: 5,
            features: 4,
            probability: 0.4,
            seed_low: 1,
            seed_high: 2,
            step: 3,
            site: 4,
            stride: 4,
            offset: 0,
        };
        let drop = |x: &[f64]| dropout::reference::apply(x, &names, &dropping);
        let forward = |x: &[f64], a: &[f64], b: &[f64]| {
            reference::expand(&reference::dot(&drop(x), a, (2, 4)), b, (2, 3), scale)
        };
        let dropped = drop(&x);
        assert!(dropped.contains(&0.0) && dropped != vec![0.0; 20]);
        let h = reference::dot(&dropped, &a, (2, 4));
        let db = reference::outer(&h, &dy, (2, 3), scale);
        let dh = reference::dot(&dy, &b, (2, 3));
        let da = reference::outer(&dh, &dropped, (2, 4), scale);
        let dx = drop(&reference::expand(&dh, &a, (2, 4), scale));
        assert_gradient(&b, &dy, &db, |b| forward(&x, &a, b));
        assert_gradient(&a, &dy, &da, |a| forward(&x, a, &b));
        assert_gradient(&x, &dy, &dx, |x| forward(x, &a, &b));
    }

    #[test]
    fn fast_paths_agree_with_the_specification() {
        for (rows, rank, width, gap) in
            [(0, 2, 8, 0), (1, 1, 1, 0), (5, 8, 384, 3), (300, 9, 50, 0), (33, 16, 70, 7)]
        {
            let stride = width + gap;
            let x = random(rows * stride + gap, 4);
            let (m, h) = (random(rank * width, 5), random(rows * rank, 6));
            let args = Args {
                rows: rows as u32,
                rank: rank as u32,
                width: width as u32,
                stride: stride as u32,
                offset: gap as u32,
                scale: 0.5,
            };
            let dense: Vec<f64> = (0..rows).flat_map(|t| wide(&x[gap + t * stride..][..width])).collect();
            let got = Buffers::new().f32(&x).f32(&m).output(rows * rank).run(&DOT, args);
            assert_close(&got[0], &reference::dot(&dense, &wide(&m), (rank, width)), 2e-6);
            let got = Buffers::new().f32(&h).f32(&m).updated(&x).run(&EXPAND, args);
            let added = reference::expand(&wide(&h), &wide(&m), (rank, width), 0.5);
            for t in 0..rows {
                let wanted: Vec<f64> =
                    (0..width).map(|n| dense[t * width + n] + added[t * width + n]).collect();
                assert_close(&got[0][gap + t * stride..][..width], &wanted, 2e-6);
            }
            let start = random(rank * width, 7);
            let got = Buffers::new().f32(&h).f32(&x).updated(&start).run(&OUTER, args);
            let sum = reference::outer(&wide(&h), &dense, (rank, width), 0.5);
            let wanted: Vec<f64> = sum.iter().zip(&start).map(|(a, b)| a + f64::from(*b)).collect();
            assert_close(&got[0], &wanted, 5e-6);
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_among_others() {
        let (x, m) = (random(40 * 50, 8), random(8 * 50, 9));
        let args = |rows| Args { rows, rank: 8, width: 50, stride: 50, offset: 0, scale: 1.0 };
        let all = Buffers::new().f32(&x).f32(&m).output(40 * 8).run(&DOT, args(40));
        for t in [0, 7, 39] {
            let one = Buffers::new().f32(&x[t * 50..(t + 1) * 50]).f32(&m).output(8).run(&DOT, args(1));
            assert_eq!(one[0], all[0][t * 8..(t + 1) * 8]);
        }
    }
}
