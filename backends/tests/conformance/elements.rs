//! Cases of what is computed element by element: `gelu`, `elementwise`, `dropout`, `adamw`, `embed`.

use motley_kernels::{adamw, dropout, elementwise, embed, gelu};

use super::bounded::{Bounded, exact};
use super::device::{Data, Device, GUARD};
use super::random::{Random, scaled};

const KINDS: [gelu::Kind; 3] = [gelu::Kind::Exact, gelu::Kind::Tanh, gelu::Kind::Relu];

pub fn cases(device: &mut Device<'_>) {
    for (seed, (count, size)) in
        [(0, 1.0), (1, 1.0), (257, 5.0), (3001, 12.0), (17, 1e30)].into_iter().enumerate()
    {
        let x = scaled(Random::new(seed as u64).numbers(count), size);
        KINDS.into_iter().for_each(|kind| gelu(device, x.clone(), kind));
    }
    let edges = vec![f32::NAN, 0.0, -0.0, 100.0, -100.0, f32::INFINITY, -2.2, 3.0, 1e-20];
    KINDS.into_iter().for_each(|kind| gelu(device, edges.clone(), kind));
    for (seed, count) in [0, 1, 255, 1025, 3001].into_iter().enumerate() {
        elementwise(device, count, 0.5, seed as u64);
        adamw(device, count, seed as u64);
    }
    not_a_number_times_zero(device);
    let mut random = Random::new(12);
    let mut shapes = vec![(0, 4, 0.5), (1, 1, 0.5), (9, 70, 0.1), (20, 384, 0.05), (3, 8, 0.0), (7, 5, 0.9)];
    shapes.extend((0..3).map(|_| (random.size(30), random.size(90), 0.25)));
    for (seed, (rows, features, probability)) in shapes.into_iter().enumerate() {
        for gap in [0, 3] {
            dropout(device, [rows, features, gap], probability, seed as u64);
        }
    }
    let shapes = [(0, 4), (1, 1), (5, 7), (40, 33), (3, 384), (random.size(30), random.size(200))];
    for (seed, (tokens, hidden)) in shapes.into_iter().enumerate() {
        embed(device, tokens, hidden, seed as u64);
    }
}

pub fn gelu(device: &mut Device<'_>, x: Vec<f32>, kind: gelu::Kind) {
    device.case = format!("{kind:?}, {} elements, the first {:?}", x.len(), x.first());
    let x = device.rounded(x);
    let dy = device.rounded(Random::new(7).numbers(x.len()));
    let args = gelu::Args { count: x.len() as u32, kind: kind as u32 };
    let got = device.run(&gelu::FORWARD, &args, vec![Data::of(&x), Data::Output(x.len())]);
    device.compare_activations(gelu::FORWARD.name, &got[0], &gelu::reference::forward(&exact(&x), kind));
    if x.iter().any(|v| v.is_infinite()) {
        return; // 0·∞ is no number, and no training step has it.
    }
    let data = vec![Data::of(&dy), Data::of(&x), Data::Output(x.len())];
    let got = device.run(&gelu::BACKWARD, &args, data);
    let wanted = gelu::reference::backward(&exact(&dy), &exact(&x), kind);
    device.compare_activations(gelu::BACKWARD.name, &got[0], &wanted);
}

fn elementwise(device: &mut Device<'_>, count: usize, alpha: f32, seed: u64) {
    device.case = format!("count {count}, alpha {alpha}, seed {seed}");
    let mut random = Random::new(seed);
    let (x, y) = (device.rounded(random.numbers(count)), device.rounded(random.numbers(count)));
    let args = elementwise::Args { count: count as u32, alpha };
    let got = device.run(&elementwise::ADD, &args, vec![Data::of(&x), Data::of(&y)]);
    let wanted = elementwise::reference::add(f64::from(alpha), &exact(&x), &exact(&y));
    device.compare_activations(elementwise::ADD.name, &got[0], &wanted);
    for lead in [GUARD, GUARD + 4] {
        let got = device.run_from(&elementwise::FILL, &args, vec![Data::Output(count)], lead);
        device.compare_bits(elementwise::FILL.name, &got[0], &vec![alpha; count]);
    }
}

fn not_a_number_times_zero(device: &mut Device<'_>) {
    device.case = "0 times NaN and infinity stays visible".to_owned();
    let args = elementwise::Args { count: 2, alpha: 0.0 };
    let data = vec![Data::of(&[f32::NAN, f32::INFINITY]), Data::of(&[1.0, 1.0])];
    let got = device.run(&elementwise::ADD, &args, data);
    device.compare_bits(elementwise::ADD.name, &got[0], &[f32::NAN; 2]);
}

fn adamw(device: &mut Device<'_>, count: usize, seed: u64) {
    device.case = format!("count {count}, seed {seed}");
    let mut random = Random::new(seed);
    let (gradient, parameter, first) = (random.numbers(count), random.numbers(count), random.numbers(count));
    let second: Vec<f32> = random.numbers(count).iter().map(|v| v * v).collect();
    let args = adamw::Args {
        count: count as u32,
        decay: 0.999,
        beta1: 0.9,
        beta2: 0.999,
        step_size: 1e-3,
        correction2_root: 0.1,
        epsilon: 1e-8,
        gradient_scale: 0.5,
    };
    let mut state = [exact(&parameter), exact(&first), exact(&second)];
    adamw::reference::step(&exact(&gradient), &mut state, &args);
    let data = [&gradient, &parameter, &first, &second].map(|values| Data::of(values));
    let got = device.run_from(&adamw::STEP, &args, data.into(), GUARD + 4 * (seed as usize % 4));
    got.iter().zip(&state).for_each(|(got, wanted)| device.compare(adamw::STEP.name, got, wanted));
}

fn dropout(device: &mut Device<'_>, [rows, features, gap]: [usize; 3], probability: f32, seed: u64) {
    device.case = format!("rows {rows}, features {features}, gap {gap}, p {probability}, seed {seed}");
    let mut random = Random::new(seed);
    let stride = features + gap;
    let strided = device.rounded(random.numbers(rows * stride + gap));
    let before = device.rounded(random.numbers(rows * features));
    let names: Vec<u32> = (0..rows as u32).flat_map(|t| [t / 2, t % 2 + (1 << 24)]).collect();
    let args = dropout::Args {
        rows: rows as u32,
        features: features as u32,
        probability,
        seed_low: 42,
        seed_high: 0xffff_0001,
        step: 3,
        site: 17,
        stride: stride as u32,
        offset: gap as u32,
    };
    let dense: Vec<f32> = (0..rows).flat_map(|t| strided[gap + t * stride..][..features].to_vec()).collect();
    let wanted = dropout::reference::apply(&exact(&dense), &names, &args);
    let data = vec![Data::of(&strided), Data::words(&names), Data::Output(rows * features)];
    let got = device.run(&dropout::APPLY, &args, data);
    device.compare_activations(dropout::APPLY.name, &got[0], &wanted);
    let data = vec![Data::of(&strided), Data::words(&names), Data::of(&before)];
    let got = device.run(&dropout::APPLY_ADD, &args, data);
    let sum: Vec<Bounded> = wanted.into_iter().zip(exact(&before)).map(|(a, b)| a + b).collect();
    device.compare_activations(dropout::APPLY_ADD.name, &got[0], &sum);
}

/// `embed` with the whole table of words and with pieces of it; rows of other pieces stay as they were.
fn embed(device: &mut Device<'_>, tokens: usize, hidden: usize, seed: u64) {
    let mut random = Random::new(seed);
    let ids = [9, 6, 2].map(|rows| random.indices(tokens, rows));
    let tables = [9, 6, 2].map(|rows| device.rounded(random.numbers(rows * hidden)));
    let before = device.rounded(random.numbers(tokens * hidden));
    let ids = [&ids[0][..], &ids[1], &ids[2]];
    for piece in [0..9, 0..4, 4..9, 3..3] {
        device.case = format!("tokens {tokens}, hidden {hidden}, words {piece:?}, seed {seed}");
        let args = embed::Args {
            tokens: tokens as u32,
            hidden: hidden as u32,
            first_word: piece.start as u32,
            words: piece.len() as u32,
        };
        let word = &tables[0][piece.start * hidden..piece.end * hidden];
        let mut data: Vec<Data> = ids.iter().map(|ids| Data::words(ids)).collect();
        data.extend([word, &tables[1], &tables[2], &before].map(Data::of));
        let got = device.run(&embed::FORWARD, &args, data);
        let mut wanted = exact(&before);
        let exact_tables = [&exact(word)[..], &exact(&tables[1]), &exact(&tables[2])];
        embed::reference::forward(ids, exact_tables, &args, &mut wanted);
        device.compare_activations(embed::FORWARD.name, &got[0], &wanted);
        let data = [Data::words(ids[0]), Data::of(word), Data::of(&before)];
        let got = device.run(&embed::WORDS, &args, data.into());
        let mut wanted = before.clone();
        embed::reference::words(ids[0], word, &args, &mut wanted);
        device.compare_bits(embed::WORDS.name, &got[0], &wanted);
    }
}
