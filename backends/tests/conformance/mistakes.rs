//! The bounds bite: results with a planted mistake do not pass, in either precision.

use std::sync::Arc;

use motley_backends::{Backend, DeviceRequest, open};
use motley_kernels::{attention, gelu, lora};

use super::attention::Shape;
use super::bounded::{BF16, Bounded, exact, with_rounded_exp};
use super::device::Device;
use super::random::{Random, scaled};

fn backend() -> Arc<dyn Backend> {
    open(&DeviceRequest { backend: "cpu".to_owned(), ..DeviceRequest::default() }).expect("the processor")
}

/// Asserts that what is right passes and what is wrong does not, as f32 and as rounded to 16 bits.
fn assert_bites(right: &[f64], wrong: &[f64], wanted: [&[Bounded]; 2]) {
    let backend = backend();
    for (is_bf16, wanted) in [(false, wanted[0]), (true, wanted[1])] {
        let complaints = |results: &[f64]| {
            let stored = |v: &f64| if is_bf16 { half::bf16::from_f64(*v).to_f32() } else { *v as f32 };
            let stored: Vec<f32> = results.iter().map(stored).collect();
            let mut device = Device::new(&*backend);
            device.compare_as("mistake", &stored, wanted, is_bf16);
            device.complaints
        };
        assert!(complaints(right).is_empty(), "{:?}", complaints(right));
        assert!(!complaints(wrong).is_empty(), "bf16 {is_bf16}: the bound is too wide");
    }
}

#[test]
fn the_other_gelu_is_noticed() {
    let x = scaled(Random::new(1).numbers(500), 5.0);
    let x: Vec<f32> = x.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect();
    let wide: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
    let wanted = gelu::reference::forward(&exact(&x), gelu::Kind::Exact);
    let right = gelu::reference::forward(&wide, gelu::Kind::Exact);
    assert_bites(&right, &gelu::reference::forward(&wide, gelu::Kind::Tanh), [&wanted, &wanted]);
    let dy = vec![1.0; 500];
    let wanted = gelu::reference::backward(&exact(&dy), &exact(&x), gelu::Kind::Exact);
    let right = gelu::reference::backward(&[1.0; 500], &wide, gelu::Kind::Exact);
    let wrong = gelu::reference::backward(&[1.0; 500], &wide, gelu::Kind::Tanh);
    assert_bites(&right, &wrong, [&wanted, &wanted]);
}

#[test]
fn a_dropped_key_is_noticed() {
    let shape = Shape::new(&[0, 64], [2, 1, 32], 0, 0.0);
    let args = shape.args();
    let x = Random::new(2).numbers(64 * args.stride as usize);
    let x: Vec<f32> = x.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect();
    let wide: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
    let forward = || attention::reference::forward(&exact(&x), &[0, 64], &[0; 128], &args).out;
    let wanted = [forward(), with_rounded_exp(BF16, forward)];
    let right = attention::reference::forward(&wide, &[0, 64], &[0; 128], &args).out;
    // Queries of 63 tokens do not see the last one.
    let fewer = attention::Args { tokens: 63, longest: 63, ..args };
    let mut wrong = attention::reference::forward(&wide, &[0, 63], &[0; 128], &fewer).out;
    wrong.extend(&right[wrong.len()..]);
    assert_bites(&right, &wrong, [&wanted[0], &wanted[1]]);
    let rounded: Vec<f64> = right.iter().map(|v| half::bf16::from_f64(*v).to_f64()).collect();
    assert_bites(&rounded, &wrong, [&wanted[1], &wanted[1]]);
}

#[test]
fn a_ragged_tail_left_out_is_noticed() {
    let (rank, width) = (4, 389);
    let (x, m) = (Random::new(3).numbers(5 * width), Random::new(4).numbers(rank * width));
    let wide = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
    let wanted = lora::reference::dot(&exact(&x), &exact(&m), (rank, width));
    let right = lora::reference::dot(&wide(&x), &wide(&m), (rank, width));
    let shorter =
        wide(&m).iter().enumerate().map(|(i, v)| if i % width == 388 { 0.0 } else { *v }).collect::<Vec<_>>();
    let wrong = lora::reference::dot(&wide(&x), &shorter, (rank, width));
    assert_bites(&right, &wrong, [&wanted, &wanted]);
}

#[test]
fn elements_that_nobody_wrote_are_noticed() {
    let backend = backend();
    let mut device = Device::new(&*backend);
    device.compare("mistake", &[1.0, f32::NAN], &exact(&[1.0, 2.0]));
    device.compare("mistake", &[1.0, f32::INFINITY], &exact(&[1.0, 2.0]));
    device.compare("mistake", &[1.0], &exact(&[1.0, 2.0]));
    device.compare("mistake", &[1.0], &[Bounded::within(1.0, f64::INFINITY)]);
    assert_eq!(device.complaints.len(), 4, "{:?}", device.complaints);
}
