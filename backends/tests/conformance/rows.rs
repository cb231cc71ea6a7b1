//! Cases of what is computed row by row: `layer_norm`, `normalize`, `cosine_pairs`.

use motley_kernels::{cosine_pairs, layer_norm, normalize};

use super::bounded::exact;
use super::device::{Data, Device};
use super::random::{Random, scaled};

pub fn cases(device: &mut Device<'_>) {
    let mut shapes = vec![(0, 8), (1, 1), (3, 17), (33, 31), (9, 384), (2, 1025)];
    let mut random = Random::new(11);
    shapes.extend((0..4).map(|_| (random.size(40), random.size(300))));
    for (seed, (rows, width)) in shapes.into_iter().enumerate() {
        layer_norm(device, [rows, width], 1.0, seed as u64);
        normalize(device, [rows, width], 1.0, seed as u64);
        cosine_pairs(device, [rows, width], 1.0, seed as u64);
    }
    layer_norm(device, [5, 768], 1e4, 20);
    normalize(device, [5, 70], 1e15, 21);
    normalize(device, [3, 40], 0.0, 22);
    cosine_pairs(device, [5, 70], 1e8, 23);
    cosine_pairs(device, [2, 33], 0.0, 24);
    layer_norm(device, [3, 50], f32::NAN, 25);
    normalize(device, [3, 50], f32::NAN, 26);
    cosine_pairs(device, [3, 50], f32::NAN, 27);
}

/// Values of one size; where it is NaN, one of a row of three is NaN.
fn values(random: &mut Random, [rows, width]: [usize; 2], size: f32) -> Vec<f32> {
    let mut values = random.numbers(rows * width);
    if size.is_nan() {
        values[width + width / 2] = f32::NAN;
        return values;
    }
    scaled(values, size)
}

fn layer_norm(device: &mut Device<'_>, [rows, hidden]: [usize; 2], size: f32, seed: u64) {
    device.case = format!("rows {rows}, hidden {hidden}, size {size}, seed {seed}");
    let mut random = Random::new(seed);
    let x = values(&mut random, [rows, hidden], size);
    let x = device.rounded(x);
    let residual =
        device.rounded(scaled(random.numbers(rows * hidden), if size.is_nan() { 1.0 } else { size }));
    let (gamma, beta) = (random.numbers(hidden), random.numbers(hidden));
    let dy = device.rounded(random.numbers(rows * hidden));
    // Variance 0 of one element: with BERT's 1e-12 the rounding of x − mean would count for 1e6 times as much.
    let epsilon = if hidden == 1 { 1e-5 } else { 1e-12 };
    let args = layer_norm::Args { rows: rows as u32, hidden: hidden as u32, epsilon };
    let outputs = || [Data::Output(rows * hidden), Data::Output(rows), Data::Output(rows)];
    let reference = |x: &[f32]| {
        layer_norm::reference::forward(&exact(x), &exact(&gamma), &exact(&beta), hidden, f64::from(epsilon))
    };
    let entry = &layer_norm::FORWARD;
    let data = [Data::of(&x), Data::of(&gamma), Data::of(&beta)].into_iter().chain(outputs()).collect();
    let got = device.run(entry, &args, data);
    let wanted = reference(&x);
    device.compare_activations(entry.name, &got[0], &wanted.y);
    device.compare(entry.name, &got[1], &wanted.mean);
    device.compare(entry.name, &got[2], &wanted.reciprocal_deviation);
    let entry = &layer_norm::RESIDUAL_FORWARD;
    // Statistics are those of the sum as it is stored.
    let sum = device.rounded(x.iter().zip(&residual).map(|(a, b)| a + b).collect());
    let wanted = reference(&sum);
    let mut kept_y = vec![];
    for keep in [1, 0] {
        let args = layer_norm::ResidualArgs { rows: args.rows, hidden: args.hidden, epsilon, keep };
        let data = [Data::of(&x), Data::of(&residual), Data::of(&gamma), Data::of(&beta)];
        let got = device.run(entry, &args, data.into_iter().chain(outputs()).collect());
        if keep == 1 {
            device.compare_bits(entry.name, &got[0], &sum);
            device.compare_activations(entry.name, &got[1], &wanted.y);
            device.compare(entry.name, &got[2], &wanted.mean);
            device.compare(entry.name, &got[3], &wanted.reciprocal_deviation);
            kept_y.clone_from(&got[1]);
        } else {
            // Evaluating and training see the same bits.
            device.compare_bits(entry.name, &got[1], &kept_y);
        }
    }
    let saved = layer_norm::reference::forward(&x, &gamma, &beta, hidden, f64::from(epsilon));
    let (mean, reciprocal) = (saved.mean, saved.reciprocal_deviation);
    let mut data =
        vec![Data::of(&dy), Data::of(&x), Data::of(&gamma), Data::of(&mean), Data::of(&reciprocal)];
    data.push(Data::Output(rows * hidden));
    let got = device.run(&layer_norm::BACKWARD, &args, data);
    let saved = layer_norm::reference::Normalised {
        y: vec![],
        mean: exact(&mean),
        reciprocal_deviation: exact(&reciprocal),
    };
    let wanted = layer_norm::reference::backward(&exact(&dy), &exact(&x), &exact(&gamma), &saved, hidden);
    device.compare_activations(layer_norm::BACKWARD.name, &got[0], &wanted);
}

fn normalize(device: &mut Device<'_>, [rows, width]: [usize; 2], size: f32, seed: u64) {
    device.case = format!("rows {rows}, width {width}, size {size}, seed {seed}");
    let mut random = Random::new(seed);
    let (x, dy) = (values(&mut random, [rows, width], size), random.numbers(rows * width));
    let args = normalize::Args { rows: rows as u32, width: width as u32 };
    let data = vec![Data::of(&x), Data::Output(rows * width), Data::Output(rows)];
    let got = device.run(&normalize::FORWARD, &args, data);
    let (y, length) = normalize::reference::forward(&exact(&x), width);
    device.compare(normalize::FORWARD.name, &got[0], &y);
    device.compare(normalize::FORWARD.name, &got[1], &length);
    let (y, length) = normalize::reference::forward(&x, width);
    let data = vec![Data::of(&dy), Data::of(&y), Data::of(&length), Data::Output(rows * width)];
    let got = device.run(&normalize::BACKWARD, &args, data);
    let wanted = normalize::reference::backward(&exact(&dy), &exact(&y), &exact(&length), width);
    device.compare(normalize::BACKWARD.name, &got[0], &wanted);
}

fn cosine_pairs(device: &mut Device<'_>, [rows, width]: [usize; 2], size: f32, seed: u64) {
    device.case = format!("rows {rows}, width {width}, size {size}, seed {seed}");
    let mut random = Random::new(seed);
    let a = values(&mut random, [rows, width], size);
    let (b, d) = (random.numbers(rows * width), random.numbers(rows));
    let args = cosine_pairs::Args { rows: rows as u32, width: width as u32 };
    let data = vec![Data::of(&a), Data::of(&b), Data::Output(rows)];
    let got = device.run(&cosine_pairs::FORWARD, &args, data);
    let wanted = cosine_pairs::reference::forward(&exact(&a), &exact(&b), width);
    device.compare(cosine_pairs::FORWARD.name, &got[0], &wanted);
    let mut data = vec![Data::of(&d), Data::of(&a), Data::of(&b)];
    data.extend([Data::Output(rows * width), Data::Output(rows * width)]);
    let got = device.run(&cosine_pairs::BACKWARD, &args, data);
    let (da, db) = cosine_pairs::reference::backward(&exact(&d), &exact(&a), &exact(&b), width);
    device.compare(cosine_pairs::BACKWARD.name, &got[0], &da);
    device.compare(cosine_pairs::BACKWARD.name, &got[1], &db);
}
