//! Small fleets of all kinds of devices, and the places that jobs get there.

use super::*;
use crate::document::BackendKind::{Cpu, Cuda, Wgpu};

const GIB: u64 = 1 << 30;

fn device(node: u64, device: u32, backend: BackendKind, free: u64) -> Device {
    Device {
        node: NodeId(node),
        device,
        backend,
        index: device,
        total: Bytes(16 * GIB),
        free: Bytes(free * GIB),
        attempts: u32::from(free < 16),
        is_software: false,
        speed: None,
        same_card: None,
    }
}

fn ask(backend: &[BackendKind]) -> Vec<Resources> {
    vec![Resources { backend: backend.to_vec(), fastest: false, ..Resources::default() }]
}

fn check(places: &mut Places, resources: &[Resources], memory: &[u64], expected: Option<(u64, u32)>) {
    let memory: Vec<_> = memory.iter().map(|size| Bytes(size * GIB)).collect();
    let request = Request { resources, memory: &memory, avoid: None };
    let found = places.find(&request).map(|place| (place.node.0, place.device));
    assert_eq!(found, expected, "{request:?}");
    assert_eq!(places.explain(&request).is_none(), found.is_some());
}

#[test]
fn first_fit_follows_alternatives_backends_and_idleness() {
    let mut places = Places::new(vec![
        device(1, 0, Cpu, 16),
        device(2, 0, Cuda, 10),
        device(2, 1, Cuda, 16),
        device(3, 0, Cuda, 16),
    ]);
    check(&mut places, &ask(&[Cuda, Cpu]), &[1], Some((2, 1)));
    check(&mut places, &ask(&[Cpu, Cuda]), &[1], Some((1, 0)));
    check(&mut places, &ask(&[Wgpu, Cpu]), &[16], Some((1, 0)));
    check(&mut places, &ask(&[Cuda]), &[17], None);
    check(&mut places, &[ask(&[Cuda]), ask(&[Cpu])].concat(), &[17, 1], Some((1, 0)));
    let resources = ask(&[Cuda]);
    let request = Request { resources: &resources, memory: &[Bytes(9 * GIB)], avoid: None };
    let mut taken = Vec::new();
    while let Some(place) = places.find(&request) {
        places.lease(&place);
        taken.push((place.node.0, place.device));
    }
    // Idle ones first, then the shared one that still fits.
    assert_eq!(taken, [(2, 1), (3, 0), (2, 0)]);
}

#[test]
fn another_node_is_preferred_only_when_it_fits() {
    let devices = vec![device(1, 0, Cuda, 16), device(2, 0, Cuda, 8)];
    let resources = ask(&[Cuda]);
    for (memory, node) in [(8, 2), (9, 1)] {
        let memory = [Bytes(memory * GIB)];
        let request = Request { resources: &resources, memory: &memory, avoid: Some(NodeId(1)) };
        let place = Places::new(devices.clone()).find(&request).unwrap();
        assert_eq!(place.node, NodeId(node));
    }
}

#[test]
fn waiting_reason_names_figures_and_device() {
    let explain = |devices: Vec<Device>, memory: u64| {
        let resources = ask(&[Cuda]);
        let memory = [Bytes(memory * GIB)];
        Places::new(devices).explain(&Request { resources: &resources, memory: &memory, avoid: None })
    };
    assert_eq!(explain(vec![], 1).unwrap(), "no node is ready");
    assert_eq!(
        explain(vec![device(1, 0, Cpu, 16)], 1).unwrap(),
        "needs a cuda device, no ready node has one"
    );
    assert_eq!(
        explain(vec![device(4, 2, Cuda, 3)], 9).unwrap(),
        "needs 9GiB on one cuda device, at most 3GiB are free (cuda 2 of node 4)"
    );
    assert_eq!(
        explain(vec![device(4, 2, Cuda, 3)], 20).unwrap(),
        "needs 20GiB on one cuda device, the largest has 16GiB (cuda 2 of node 4)"
    );
    assert_eq!(explain(vec![device(4, 2, Cuda, 3)], 3), None);
}

fn auto() -> Vec<Resources> {
    vec![Resources::default()]
}

fn leases(places: &mut Places, resources: &[Resources], gib: u64) -> Vec<(u64, u32)> {
    let request = Request { resources, memory: &[Bytes(gib * GIB)], avoid: None };
    let mut taken = Vec::new();
    while let Some(place) = places.find(&request) {
        places.lease(&place);
        taken.push((place.node.0, place.device));
    }
    assert!(places.explain(&request).is_some());
    taken
}

#[test]
fn auto_takes_the_device_that_is_fastest_for_one_more() {
    let speed = |device: Device, speed: u64| Device { speed: Some(speed), ..device };
    let mut places = Places::new(vec![
        speed(device(1, 0, Cpu, 16), 10),
        speed(device(1, 1, Cuda, 16), 400),
        speed(device(2, 0, Cuda, 16), 390),
        speed(device(3, 0, Wgpu, 16), 150),
    ]);
    // Idle 390 before half of 400; a third of 400 (133) after 150; the processor when nothing else is left.
    let taken = leases(&mut places, &auto(), 8);
    assert_eq!(taken, [(1, 1), (2, 0), (1, 1), (2, 0), (3, 0), (3, 0), (1, 0), (1, 0)]);
    let mut unknown =
        Places::new(vec![device(1, 0, Cpu, 16), device(2, 0, Cuda, 16), device(3, 0, Wgpu, 16)]);
    assert_eq!(leases(&mut unknown, &auto(), 16), [(2, 0), (3, 0), (1, 0)]);
}

#[test]
fn software_adapters_are_taken_by_name_alone_and_last() {
    let software = Device { is_software: true, speed: Some(u64::MAX), ..device(1, 1, Wgpu, 16) };
    let devices = vec![device(1, 0, Cpu, 8), software];
    check(&mut Places::new(devices.clone()), &auto(), &[8], Some((1, 0)));
    check(&mut Places::new(devices.clone()), &auto(), &[9], None);
    check(&mut Places::new(devices.clone()), &ask(&[Wgpu, Cpu]), &[8], Some((1, 0)));
    check(&mut Places::new(devices.clone()), &ask(&[Wgpu, Cpu]), &[9], Some((1, 1)));
    check(&mut Places::new(devices.clone()), &ask(&[Wgpu]), &[1], Some((1, 1)));
    let resources = auto();
    let request = Request { resources: &resources, memory: &[Bytes(9 * GIB)], avoid: None };
    let why = Places::new(devices).explain(&request).unwrap();
    assert!(why.ends_with("at most 8GiB are free (cpu 0 of node 1)"), "{why}");
}

#[test]
fn a_job_may_name_the_index_of_its_device() {
    let devices: Vec<_> = (0..3).map(|index| device(1, index, Cuda, 16)).collect();
    let named = |device: &[u32], fastest| {
        vec![Resources { backend: vec![Cuda], device: device.to_vec(), fastest, ..Resources::default() }]
    };
    for fastest in [false, true] {
        check(&mut Places::new(devices.clone()), &named(&[2], fastest), &[1], Some((1, 2)));
        check(&mut Places::new(devices.clone()), &named(&[3], fastest), &[1], None);
        let mut places = Places::new(devices.clone());
        assert_eq!(leases(&mut places, &named(&[0, 2], fastest), 16), [(1, 0), (1, 2)]);
        // What one job may not have is there for the other.
        check(&mut places, &ask(&[Cuda]), &[16], Some((1, 1)));
    }
    let resources = named(&[7], false);
    let request = Request { resources: &resources, memory: &[Bytes(GIB)], avoid: None };
    let why = Places::new(devices).explain(&request).unwrap();
    assert_eq!(why, "needs a cuda 7 device, no ready node has one");
}

#[test]
fn two_devices_of_one_card_share_its_memory() {
    let same = |device: Device, other: u32| Device { same_card: Some(other), ..device };
    let devices = vec![
        device(1, 0, Cuda, 16),
        same(device(2, 0, Cuda, 16), 2),
        device(2, 1, Cpu, 16),
        same(device(2, 2, Wgpu, 16), 0),
    ];
    let mut places = Places::new(devices);
    assert_eq!(leases(&mut places, &ask(&[Wgpu]), 10), [(2, 2)]);
    assert_eq!(leases(&mut places, &ask(&[Cuda]), 10), [(1, 0)]);
    assert_eq!(leases(&mut places, &ask(&[Wgpu, Cuda]), 6), [(2, 2), (1, 0)]);
    assert_eq!(leases(&mut places, &ask(&[Cpu]), 16), [(2, 1)]);
}
