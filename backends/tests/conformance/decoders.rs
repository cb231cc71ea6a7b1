//! Cases of what decoders add: `rms_norm`, `head_norm`, `rope`, `swiglu`.

use motley_kernels::{head_norm, rms_norm, rope, swiglu};

use super::bounded::exact;
use super::device::{Data, Device};
use super::random::{Random, scaled};

pub fn cases(device: &mut Device<'_>) {
    let mut random = Random::new(17);
    let mut shapes =
        vec![(0, 8, 1.0), (1, 1, 1.0), (3, 17, 1.0), (9, 384, 1.0), (2, 1025, 1.0), (5, 768, 1e4)];
    shapes.extend((0..3).map(|_| (random.size(40), random.size(300), 1.0)));
    for (seed, (rows, width, size)) in shapes.into_iter().enumerate() {
        rms_norm(device, [rows, width], size, seed as u64);
        let x = scaled(Random::new(seed as u64).numbers(rows * 2 * width), 12.0 * size);
        swiglu(device, x, [rows, width]);
    }
    // Gates that are wholly closed and open, and NaN on either side.
    swiglu(device, vec![-1e30, 1e30, f32::NAN, 0.0, 1.0, 1.0, 1.0, f32::NAN], [1, 4]);
    // tokens, heads, kv_heads, head_dim
    for (seed, shape) in
        [[0, 2, 1, 4], [1, 1, 1, 1], [5, 4, 2, 6], [7, 4, 2, 128], [3, 3, 1, 33]].into_iter().enumerate()
    {
        head_norm(device, shape, seed as u64);
    }
    // tokens, heads, head_dim, columns beside them
    for (seed, shape) in
        [[0, 1, 2, 0], [1, 1, 2, 0], [20, 6, 128, 64], [9, 3, 6, 5], [31, 2, 66, 0]].into_iter().enumerate()
    {
        rope(device, shape, seed as u64);
    }
}

fn rms_norm(device: &mut Device<'_>, [rows, hidden]: [usize; 2], size: f32, seed: u64) {
    device.case = format!("rows {rows}, hidden {hidden}, size {size}, seed {seed}");
    let mut random = Random::new(seed);
    let x = device.rounded(scaled(random.numbers(rows * hidden), size));
    let residual = device.rounded(scaled(random.numbers(rows * hidden), size));
    let (gamma, dy) = (random.numbers(hidden), device.rounded(random.numbers(rows * hidden)));
    let args = rms_norm::Args { rows: rows as u32, hidden: hidden as u32, epsilon: 1e-6 };
    let reference = |x: &[f32]| rms_norm::reference::forward(&exact(x), &exact(&gamma), 1e-6f32.into());
    let outputs = [Data::Output(rows * hidden), Data::Output(rows)];
    let data = [Data::of(&x), Data::of(&gamma)].into_iter().chain(outputs).collect();
    let got = device.run(&rms_norm::FORWARD, &args, data);
    let wanted = reference(&x);
    device.compare_activations(rms_norm::FORWARD.name, &got[0], &wanted.y);
    device.compare(rms_norm::FORWARD.name, &got[1], &wanted.reciprocal_root);

    let outputs = [Data::Output(rows * hidden), Data::Output(rows)];
    let data = [Data::of(&x), Data::of(&residual), Data::of(&gamma)].into_iter().chain(outputs).collect();
    let got = device.run(&rms_norm::RESIDUAL_FORWARD, &args, data);
    let sum = device.rounded(x.iter().zip(&residual).map(|(a, b)| a + b).collect());
    let wanted = reference(&sum);
    device.compare_bits(rms_norm::RESIDUAL_FORWARD.name, &got[0], &sum);
    device.compare_activations(rms_norm::RESIDUAL_FORWARD.name, &got[1], &wanted.y);
    device.compare(rms_norm::RESIDUAL_FORWARD.name, &got[2], &wanted.reciprocal_root);

    let root = rms_norm::reference::forward(&x, &gamma, 1e-6f32.into()).reciprocal_root;
    let data = [&dy, &x, &gamma, &root].map(|values| Data::of(values)).into_iter();
    let got = device.run(&rms_norm::BACKWARD, &args, data.chain([Data::Output(rows * hidden)]).collect());
    let wanted = rms_norm::reference::backward(&exact(&dy), &exact(&x), &exact(&gamma), &exact(&root));
    device.compare_activations(rms_norm::BACKWARD.name, &got[0], &wanted);
}

fn head_norm(device: &mut Device<'_>, [tokens, heads, kv_heads, head_dim]: [usize; 4], seed: u64) {
    device.case = format!("tokens {tokens}, heads {heads} {kv_heads}, head_dim {head_dim}, seed {seed}");
    let (mut random, count) = (Random::new(seed), tokens * (heads + 2 * kv_heads) * head_dim);
    let (x, dy) = (device.rounded(random.numbers(count)), device.rounded(random.numbers(count)));
    let (query, key) = (random.numbers(head_dim), random.numbers(head_dim));
    let args = head_norm::Args {
        tokens: tokens as u32,
        heads: heads as u32,
        kv_heads: kv_heads as u32,
        head_dim: head_dim as u32,
        epsilon: 1e-6,
    };
    let roots = head_norm::reference::forward(&x, [&query, &key], &args).1;
    let mut data = [&x, &query, &key].map(|values| Data::of(values)).to_vec();
    data.extend([Data::Output(count), Data::Output(roots.len())]);
    let got = device.run(&head_norm::FORWARD, &args, data);
    let factors = [exact(&query), exact(&key)];
    let gammas = [&factors[0][..], &factors[1]];
    let wanted = head_norm::reference::forward(&exact(&x), gammas, &args);
    device.compare_activations(head_norm::FORWARD.name, &got[0], &wanted.0);
    device.compare(head_norm::FORWARD.name, &got[1], &wanted.1);
    let data = [&dy, &x, &query, &key, &roots].map(|values| Data::of(values));
    let got = device.run(&head_norm::BACKWARD, &args, data.into());
    let wanted = head_norm::reference::backward(&exact(&dy), &exact(&x), gammas, &args);
    device.compare_activations(head_norm::BACKWARD.name, &got[0], &wanted);
}

fn rope(device: &mut Device<'_>, [tokens, heads, head_dim, gap]: [usize; 4], seed: u64) {
    let stride = heads * head_dim + gap;
    let x = device.rounded(Random::new(seed).numbers(tokens * stride));
    let positions: Vec<u32> = (0..tokens as u32).map(|t| t * 641 % 4096).collect();
    let table = rope::table(0..4096, head_dim, 1e6);
    for inverse in [0, 1] {
        device.case =
            format!("tokens {tokens}, heads {heads}, head_dim {head_dim}, gap {gap}, inverse {inverse}");
        let args = rope::Args {
            tokens: tokens as u32,
            heads: heads as u32,
            head_dim: head_dim as u32,
            stride: stride as u32,
            inverse,
        };
        let data = vec![Data::words(&positions), Data::of(&table), Data::of(&x)];
        let got = device.run(&rope::APPLY, &args, data);
        let wanted = rope::reference::apply(&exact(&x), &positions, 1e6, &args);
        device.compare_activations(rope::APPLY.name, &got[0], &wanted);
    }
}

fn swiglu(device: &mut Device<'_>, x: Vec<f32>, [rows, width]: [usize; 2]) {
    device.case = format!("rows {rows}, width {width}, x from {:?}", x.first());
    let x = device.rounded(x);
    let dy = device.rounded(Random::new(6).numbers(rows * width));
    let args = swiglu::Args { rows: rows as u32, width: width as u32 };
    let got = device.run(&swiglu::FORWARD, &args, vec![Data::of(&x), Data::Output(rows * width)]);
    device.compare_activations(swiglu::FORWARD.name, &got[0], &swiglu::reference::forward(&exact(&x), width));
    let data = vec![Data::of(&dy), Data::of(&x), Data::Output(x.len())];
    let got = device.run(&swiglu::BACKWARD, &args, data);
    let wanted = swiglu::reference::backward(&exact(&dy), &exact(&x), width);
    device.compare_activations(swiglu::BACKWARD.name, &got[0], &wanted);
}
