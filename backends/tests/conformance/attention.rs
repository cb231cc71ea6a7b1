//! Cases of `attention`.
//!
//! Where activations have 16 bits, a device may round p and ds to 16 bits before it multiplies them: p then errs by
//! half an ulp, 2⁻⁸, and ds = p∘(...) by twice that. Both are taken as errors of exp, from which all of them come;
//! log_sum_exp is summed before any rounding and has the bound of f32.

use motley_kernels::attention::{ALONG, Args, BACKWARD, FORWARD, reference};

use super::bounded::{BF16, exact, with_rounded_exp};
use super::device::{Data, Device};
use super::random::{Random, scaled};

/// What makes a case.
#[derive(Debug, Clone)]
pub struct Shape {
    pub lengths: Vec<u32>,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub causal: u32,
    pub dropout: f32,
    /// Size of q, k and v.
    pub size: f32,
    /// Columns of the buffer before q and behind v, which are nobody's; their gradient is not written.
    pub margin: u32,
}

impl Shape {
    pub fn new(lengths: &[u32], [heads, kv_heads, head_dim]: [u32; 3], causal: u32, dropout: f32) -> Self {
        Shape { lengths: lengths.to_vec(), heads, kv_heads, head_dim, causal, dropout, size: 1.0, margin: 0 }
    }

    pub fn args(&self) -> Args {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        Args {
            tokens: self.lengths[self.lengths.len() - 1],
            texts: self.lengths.len() as u32 - 1,
            longest: self.lengths.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0),
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            stride: q + 2 * kv + 2 * self.margin,
            query: self.margin,
            key: self.margin + q,
            value: self.margin + q + kv,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            causal: self.causal,
            dropout: self.dropout,
            seed_low: 5,
            seed_high: 0xffff_fff6,
            step: 7,
            site: 8,
        }
    }
}

pub fn cases(device: &mut Device<'_>) {
    let shapes = [
        Shape::new(&[0], [1, 1, 4], 0, 0.0),
        Shape::new(&[0, 1], [1, 1, 1], 0, 0.0),
        Shape::new(&[0, 1, 1, 2], [2, 2, 32], 1, 0.0),
        Shape::new(&[0, 0, 14, 15, 31], [3, 3, 32], 0, 0.0),
        Shape::new(&[0, 5, 40], [4, 2, 64], 1, 0.0),
        Shape::new(&[0, 64], [2, 2, 32], 0, 0.0),
        Shape::new(&[0, 63, 64], [2, 1, 64], 0, 0.1),
        Shape::new(&[0, 33, 50], [2, 1, 24], 1, 0.3),
        Shape::new(&[0, 20], [1, 1, 128], 0, 0.1),
        Shape::new(&[0, 17, 49], [4, 1, 128], 1, 0.0),
        Shape::new(&[0, 9, 9, 30], [3, 1, 7], 0, 0.0),
        // Scores of some hundreds: exp of what is not made less by the largest would overflow.
        Shape { size: 20.0, ..Shape::new(&[0, 40], [2, 2, 32], 0, 0.0) },
        Shape { margin: 8, ..Shape::new(&[0, 21, 33], [2, 1, 32], 0, 0.0) },
    ];
    let mut random = Random::new(13);
    for (seed, shape) in shapes.into_iter().enumerate() {
        case(device, &shape, seed as u64);
    }
    for seed in 0..4 {
        let (kv_heads, group) = (random.size(2) as u32, random.size(3) as u32);
        let head_dim = 8 * random.size(12) as u32;
        let lengths = random.lengths(3, 21);
        let (causal, dropout) = (random.below(2) as u32, 0.2 * random.below(2) as f32);
        case(
            device,
            &Shape::new(&lengths, [kv_heads * group, kv_heads, head_dim], causal, dropout),
            100 + seed,
        );
    }
    not_a_number(device);
}

/// More than one tile of queries and of keys: too much for an emulation.
pub fn large_cases(device: &mut Device<'_>) {
    case(device, &Shape::new(&[0, 65, 66, 300], [2, 2, 64], 0, 0.0), 50);
    case(device, &Shape::new(&[0, 200, 329], [4, 2, 128], 1, 0.1), 51);
    case(device, &Shape::new(&[0, 130], [12, 12, 32], 0, 0.0), 52);
}

pub fn rows(tokens: u32) -> Vec<u32> {
    (0..tokens).flat_map(|t| [t / 3, t % 3]).collect()
}

fn case(device: &mut Device<'_>, shape: &Shape, seed: u64) {
    device.case = format!("{shape:?}, seed {seed}");
    let (args, mut random) = (shape.args(), Random::new(seed));
    let (tokens, stride) = (args.tokens as usize, args.stride as usize);
    let hidden = (args.heads * args.head_dim) as usize;
    let x = device.rounded(scaled(random.numbers(tokens * stride), shape.size));
    let dout = device.rounded(random.numbers(tokens * hidden));
    let rows = rows(args.tokens);
    let data = vec![
        Data::of(&x),
        Data::words(&shape.lengths),
        Data::words(&rows),
        Data::Output(tokens * hidden),
        Data::Output(tokens * args.heads as usize),
    ];
    let got = device.run(&FORWARD, &args, data);
    let forward = || reference::forward(&exact(&x), &shape.lengths, &rows, &args);
    let rounding = if device.is_bf16() { BF16 } else { 0.0 };
    device.compare_activations(FORWARD.name, &got[0], &with_rounded_exp(rounding, forward).out);
    device.compare(FORWARD.name, &got[1], &forward().log_sum_exp);

    let saved = reference::forward(&x, &shape.lengths, &rows, &args);
    let (out, log_sum_exp) = (device.rounded(saved.out), saved.log_sum_exp);
    let data = vec![Data::of(&dout), Data::of(&out), Data::Output(tokens * args.heads as usize)];
    let got = device.run(&ALONG, &args, data);
    let along = reference::along(&exact(&dout), &exact(&out), args.head_dim as usize);
    device.compare(ALONG.name, &got[0], &along);
    let along = got[0].clone();

    let data = vec![
        Data::of(&dout),
        Data::of(&x),
        Data::of(&along),
        Data::of(&log_sum_exp),
        Data::words(&shape.lengths),
        Data::words(&rows),
        Data::Output(tokens * stride),
    ];
    let got = device.run(&BACKWARD, &args, data);
    let (along, log_sum_exp) = (exact(&along), exact(&log_sum_exp));
    let wanted = with_rounded_exp(2.0 * rounding, || {
        reference::backward(&exact(&dout), &exact(&x), [&along, &log_sum_exp], &shape.lengths, &rows, &args)
    });
    // Columns that are neither q, k nor v stay what they were: NaN.
    let (first, end) = (shape.margin as usize, stride - shape.margin as usize);
    let inside = |i: &usize| (first..end).contains(&(i % stride));
    let kept: Vec<usize> = (0..wanted.len()).filter(inside).collect();
    let of = |i: &usize| got[0][*i];
    let dx: Vec<f32> = kept.iter().map(of).collect();
    let wanted: Vec<_> = kept.iter().map(|i| wanted[*i]).collect();
    device.compare_activations(BACKWARD.name, &dx, &wanted);
    let outside: Vec<f32> = (0..got[0].len()).filter(|i| !inside(i)).map(|i| of(&i)).collect();
    device.compare_bits(BACKWARD.name, &outside, &vec![f32::NAN; outside.len()]);
}

fn not_a_number(device: &mut Device<'_>) {
    device.case = "NaN stays visible".to_owned();
    let shape = Shape::new(&[0, 3], [1, 1, 8], 0, 0.0);
    let args = shape.args();
    let mut x = vec![0.5; 3 * 24];
    x[0] = f32::NAN;
    let data = vec![
        Data::of(&x),
        Data::words(&shape.lengths),
        Data::words(&rows(3)),
        Data::Output(3 * 8),
        Data::Output(3),
    ];
    let got = device.run(&FORWARD, &args, data);
    // The first token's query meets it, the others' do not.
    device.compare_bits(FORWARD.name, &got[0][..8], &[f32::NAN; 8]);
    if got[0][8..].iter().any(|v| v.is_nan()) {
        device.complain(FORWARD.name, "NaN of one query reached another");
    }
}
