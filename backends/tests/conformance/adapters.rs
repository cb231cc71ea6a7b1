//! Cases of `lora` and `nf4`.
//!
//! Where activations have 16 bits, a device may take the f32 factors h and m of `lora` as sums of two bf16, to multiply
//! them on tensor cores: of each is lost half an ulp of the smaller one, 2⁻⁸·2⁻⁸ of it.

use motley_kernels::{lora, nf4};

use super::bounded::{BF16, Bounded, exact};
use super::device::{Data, Device, GUARD};
use super::random::{Random, scaled};

pub fn cases(device: &mut Device<'_>) {
    let mut random = Random::new(14);
    // rows, rank, width, columns beside them
    let mut shapes = vec![
        [0, 2, 8, 0],
        [1, 1, 1, 0],
        [5, 8, 384, 3],
        [64, 9, 50, 0],
        [33, 16, 70, 7],
        [7, 64, 40, 8],
        [2, 4, 1030, 1],
        // In eights, as tensor cores want them: several steps along the width, and several tiles of rows.
        [64, 8, 384, 0],
        [33, 9, 136, 24],
        [130, 16, 512, 8],
        [70, 64, 264, 0],
        [7, 65, 128, 0],
        // Rows enough for several blocks to share the columns of `outer`, and ranks for two turns of it.
        [530, 33, 72, 0],
        [800, 8, 64, 8],
    ];
    shapes.extend((0..4).map(|_| [random.size(64), random.size(32), random.size(200), random.below(9)]));
    for (seed, [rows, rank, width, gap]) in shapes.into_iter().enumerate() {
        lora(device, [rows, rank, width, gap], 1.0, seed as u64);
    }
    lora(device, [3, 8, 100, 0], 1e6, 20);
    for (seed, count) in [1, 2, 7, 64, 65, 1000, 64 * 300 + 13].into_iter().enumerate() {
        nf4(device, count, seed as u64);
    }
}

pub fn large_cases(device: &mut Device<'_>) {
    lora(device, [1500, 16, 768, 0], 1.0, 30);
    lora(device, [700, 8, 3072, 16], 1.0, 31);
}

fn lora(device: &mut Device<'_>, [rows, rank, width, gap]: [usize; 4], size: f32, seed: u64) {
    device.case =
        format!("rows {rows}, rank {rank}, width {width}, {gap} columns beside, size {size}, seed {seed}");
    let mut random = Random::new(seed);
    let stride = width + gap;
    let x = device.rounded(scaled(random.numbers(rows * stride + gap), size));
    let (m, h) = (random.numbers(rank * width), random.numbers(rows * rank));
    let args = lora::Args {
        rows: rows as u32,
        rank: rank as u32,
        width: width as u32,
        stride: stride as u32,
        offset: gap as u32,
        scale: 0.5,
    };
    let lead = GUARD + 4 * (seed as usize % 4);
    let shape = (rank, width);
    let lost = if device.is_bf16() { BF16 * BF16 } else { 0.0 };
    let within = |v: &f32| Bounded::within(f64::from(*v), lost * f64::from(v.abs()));
    let factor = |values: &[f32]| values.iter().map(within).collect::<Vec<_>>();
    let dense: Vec<f32> = (0..rows).flat_map(|t| x[gap + t * stride..][..width].to_vec()).collect();

    let data = vec![Data::of(&x), Data::of(&m), Data::Output(rows * rank)];
    let got = device.run_from(&lora::DOT, &args, data, lead);
    device.compare(lora::DOT.name, &got[0], &lora::reference::dot(&exact(&dense), &factor(&m), shape));

    let got = device.run_from(&lora::EXPAND, &args, vec![Data::of(&h), Data::of(&m), Data::of(&x)], lead);
    let added = lora::reference::expand(&factor(&h), &factor(&m), shape, 0.5);
    let wanted: Vec<Bounded> = exact(&dense).into_iter().zip(added).map(|(a, b)| a + b).collect();
    let is_mine = |i: usize| i >= gap && (i - gap) % stride < width && (i - gap) / stride < rows;
    let (mine, beside): (Vec<usize>, Vec<usize>) = (0..x.len()).partition(|i| is_mine(*i));
    let of = |from: &[f32], places: &[usize]| places.iter().map(|i| from[*i]).collect::<Vec<_>>();
    device.compare_activations(lora::EXPAND.name, &of(&got[0], &mine), &wanted);
    device.compare_bits(lora::EXPAND.name, &of(&got[0], &beside), &of(&x, &beside));

    let before = random.numbers(rank * width);
    let data = vec![Data::of(&h), Data::of(&x), Data::of(&before)];
    let got = device.run_from(&lora::OUTER, &args, data, lead);
    let sum = lora::reference::outer(&factor(&h), &exact(&dense), shape, 0.5);
    let wanted: Vec<Bounded> = exact(&before).into_iter().zip(sum).map(|(a, b)| a + b).collect();
    device.compare(lora::OUTER.name, &got[0], &wanted);
}

/// A product of two f32, rounded once: the same bits everywhere.
fn nf4(device: &mut Device<'_>, count: usize, seed: u64) {
    device.case = format!("count {count}, seed {seed}");
    let (packed, absmax) = nf4::quantize(&Random::new(seed).numbers(count));
    // Devices read whole words.
    let padded = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        Data::Bytes(bytes)
    };
    let data = vec![padded(&packed), Data::of(&absmax), Data::Output(count)];
    let got = device.run(&nf4::DEQUANTIZE, &nf4::Args { count: count as u32 }, data);
    let wanted = device.rounded(nf4::dequantize(&packed, &absmax, count));
    device.compare_bits(nf4::DEQUANTIZE.name, &got[0], &wanted);
    let double = nf4::DoubleQuantized::new(&absmax);
    let data = vec![
        padded(&packed),
        padded(&double.codes),
        Data::of(&double.nested_absmax),
        Data::of(nf4::dynamic_map()),
        Data::Output(count),
    ];
    let args = nf4::DoubleArgs { count: count as u32, offset: double.offset };
    let got = device.run(&nf4::DEQUANTIZE_DOUBLE, &args, data);
    let wanted = device.rounded(nf4::dequantize(&packed, &double.absmax(), count));
    device.compare_bits(nf4::DEQUANTIZE_DOUBLE.name, &got[0], &wanted);
}
