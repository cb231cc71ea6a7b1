//! Cases of pooling and of what follows it: `pool`, `cosent`, `cross_entropy`, `squared_error`, `sum_squares`.

use motley_kernels::{cosent, cross_entropy, pool, squared_error, sum_squares};

use super::bounded::exact;
use super::device::{Data, Device};
use super::random::{Random, scaled};

pub fn cases(device: &mut Device<'_>) {
    let mut random = Random::new(15);
    let texts: [&[u32]; 5] = [&[0], &[0, 1], &[0, 3, 4, 4, 12], &[0, 0, 64], &[0, 40, 41]];
    let mut shapes: Vec<(Vec<u32>, usize)> = texts
        .into_iter()
        .zip([3, 1, 5, 384, 300])
        .map(|(lengths, hidden)| (lengths.to_vec(), hidden))
        .collect();
    shapes.extend((0..3).map(|_| (random.lengths(4, 15), random.size(300))));
    for (seed, (lengths, hidden)) in shapes.into_iter().enumerate() {
        for kind in pool::Kind::ALL {
            let tokens = lengths[lengths.len() - 1] as usize;
            pool(device, Random::new(seed as u64).numbers(tokens * hidden), &lengths, hidden, kind);
        }
    }
    for place in 0..3 {
        let mut x = vec![1.0, 1.0, 2.0, 2.0, 3.0, 3.0];
        x[place * 2] = f32::NAN;
        pool::Kind::ALL.into_iter().for_each(|kind| pool(device, x.clone(), &[0, 3], 2, kind));
    }
    for kind in pool::Kind::ALL {
        // Equals: the first takes the gradient of the maximum.
        pool(device, vec![1.0; 12], &[0, 4, 6], 2, kind);
    }
    for (seed, count) in [1, 2, 33, 64, 250].into_iter().enumerate() {
        cosent(device, count, 20.0, seed as u64);
        squared_error(device, count, seed as u64);
    }
    cosent(device, 0, 20.0, 10);
    cosent(device, 40, 1e4, 11);
    for (seed, (rows, columns, size)) in
        [(0, 4, 1.0), (1, 1, 1.0), (5, 17, 1.0), (32, 64, 100.0), (3, 700, 20.0)].into_iter().enumerate()
    {
        cross_entropy(device, [rows, columns], size, seed as u64);
    }
    for (seed, count) in [0, 1, 31, 4097, 20_000].into_iter().enumerate() {
        let x = Random::new(seed as u64).numbers(count);
        sum_squares(device, &x);
    }
    sum_squares(device, &[3e38, 3e38]);
    sum_squares(device, &[1.0, f32::NAN]);
    sum_squares(device, &vec![1e18; 100]);
}

fn pool(device: &mut Device<'_>, x: Vec<f32>, lengths: &[u32], hidden: usize, kind: pool::Kind) {
    device.case = format!("{kind:?}, lengths {lengths:?}, hidden {hidden}, x from {:?}", x.first());
    let x = device.rounded(x);
    let texts = lengths.len() - 1;
    let dout = Random::new(5).numbers(texts * hidden);
    let args = pool::Args { texts: texts as u32, hidden: hidden as u32, kind: kind as u32 };
    let data = vec![Data::of(&x), Data::words(lengths), Data::Output(texts * hidden)];
    let got = device.run(&pool::FORWARD, &args, data);
    let wanted = pool::reference::forward(&exact(&x), lengths, hidden, kind);
    device.compare(pool::FORWARD.name, &got[0], &wanted);
    let data = vec![Data::of(&dout), Data::of(&x), Data::words(lengths), Data::Output(x.len())];
    let got = device.run(&pool::BACKWARD, &args, data);
    let wanted = pool::reference::backward(&exact(&dout), &exact(&x), lengths, hidden, kind);
    device.compare_activations(pool::BACKWARD.name, &got[0], &wanted);
}

fn cosent(device: &mut Device<'_>, pairs: usize, scale: f32, seed: u64) {
    device.case = format!("pairs {pairs}, scale {scale}, seed {seed}");
    let mut random = Random::new(seed);
    let cosine = random.numbers(pairs);
    let label: Vec<f32> = random.numbers(pairs).iter().map(|v| (v * 3.0).round()).collect();
    let data = vec![Data::of(&cosine), Data::of(&label), Data::Output(1), Data::Output(pairs)];
    let args = cosent::Args { pairs: pairs as u32, scale };
    let got = device.run(&cosent::FORWARD_BACKWARD, &args, data);
    let wanted = cosent::reference::forward_backward(&exact(&cosine), &exact(&label), f64::from(scale));
    device.compare(cosent::FORWARD_BACKWARD.name, &got[0], &[wanted.0]);
    device.compare(cosent::FORWARD_BACKWARD.name, &got[1], &wanted.1);
}

fn squared_error(device: &mut Device<'_>, count: usize, seed: u64) {
    device.case = format!("count {count}, seed {seed}");
    let mut random = Random::new(seed);
    let (x, label) = (random.numbers(count), random.numbers(count));
    let data = vec![Data::of(&x), Data::of(&label), Data::Output(1), Data::Output(count)];
    let args = squared_error::Args { count: count as u32 };
    let got = device.run(&squared_error::FORWARD_BACKWARD, &args, data);
    let wanted = squared_error::reference::forward_backward(&exact(&x), &exact(&label));
    device.compare(squared_error::FORWARD_BACKWARD.name, &got[0], &[wanted.0]);
    device.compare(squared_error::FORWARD_BACKWARD.name, &got[1], &wanted.1);
}

fn cross_entropy(device: &mut Device<'_>, [rows, columns]: [usize; 2], size: f32, seed: u64) {
    device.case = format!("rows {rows}, columns {columns}, size {size}, seed {seed}");
    let logits = scaled(Random::new(seed).numbers(rows * columns), size);
    let target: Vec<u32> = (0..rows).map(|r| (r * 7 % columns) as u32).collect();
    let is_masked = |i: usize| i.is_multiple_of(5) && i % columns != target[i / columns] as usize;
    let masked: Vec<u32> = (0..rows * columns).map(|i| u32::from(is_masked(i))).collect();
    let weight = 1.0 / rows.max(1) as f32;
    let args = cross_entropy::Args { rows: rows as u32, columns: columns as u32, weight };
    let data = vec![Data::words(&target), Data::words(&masked), Data::of(&logits), Data::Output(rows)];
    let got = device.run(&cross_entropy::FORWARD_BACKWARD, &args, data);
    let (loss, gradient) =
        cross_entropy::reference::forward_backward(&exact(&logits), &target, &masked, f64::from(weight));
    device.compare(cross_entropy::FORWARD_BACKWARD.name, &got[0], &gradient);
    device.compare(cross_entropy::FORWARD_BACKWARD.name, &got[1], &loss);
}

fn sum_squares(device: &mut Device<'_>, x: &[f32]) {
    device.case = format!("count {}, x from {:?}", x.len(), x.first());
    let args = sum_squares::Args { count: x.len() as u32 };
    let got = device.run(&sum_squares::FORWARD, &args, vec![Data::of(x), Data::Output(1)]);
    let wanted = sum_squares::reference::forward(&exact(x));
    device.compare(sum_squares::FORWARD.name, &got[0], &[wanted]);
}
