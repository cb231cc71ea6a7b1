//! Which device a job gets, and why a job waits: one piece of code answers both.
//!
//! Alternatives of the document in their order. Of each, either
//!
//! ```text
//! a list of backends    first fit: backends in the order of preference, then devices by node and index, idle ones before
//!                       shared ones. Software adapters come last, after every other backend of the list
//! auto                  the device that is fastest for this job: its measured rate, divided among those that share it.
//!                       No software adapters
//! ```
//!
//! A device is shared as far as its memory goes. One card may be two devices of a node, of two backends: they share one
//! memory. The same fleet and the same job give the same place.

use std::cmp::Reverse;
use std::fmt::Write;

use crate::document::{BackendKind, Resources};
use crate::id::NodeId;
use crate::unit::Bytes;

/// One device of a node that takes work, and what is left of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub node: NodeId,
    /// Position in the node's list.
    pub device: u32,
    pub backend: BackendKind,
    /// Among the node's devices of this backend: what documents name.
    pub index: u32,
    pub total: Bytes,
    pub free: Bytes,
    /// Attempts that compute on it.
    pub attempts: u32,
    /// Computes on the processor.
    pub is_software: bool,
    /// Operations a second, as measured.
    pub speed: Option<u64>,
    /// Position in the node's list of the other device that is the same card.
    pub same_card: Option<u32>,
}

/// What a job asks for.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Alternatives, in order of preference.
    pub resources: &'a [Resources],
    /// Bytes for each alternative.
    pub memory: &'a [Bytes],
    /// Take another node if one fits: the last attempt failed there.
    pub avoid: Option<NodeId>,
}

/// Where a job goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub node: NodeId,
    pub device: u32,
    pub backend: BackendKind,
    pub memory: Bytes,
    /// Position in the list of devices.
    index: usize,
}

/// The devices that take work now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Places {
    devices: Vec<Device>,
    /// No device of the backend has more free. Never too small; exact after a search in vain, so that a full
    /// fleet refuses thousands of waiting jobs without a look at its devices.
    free_max: [Bytes; BackendKind::ALL.len()],
    idle: [usize; BackendKind::ALL.len()],
    /// For [`Places::explain`], until the next lease: by backend, without and with software adapters.
    extremes: Option<[[Option<Extremes>; 2]; BackendKind::ALL.len()]>,
}

/// Positions of the first device with the most memory, and of the first with the most free memory, of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extremes {
    largest: usize,
    freest: usize,
}

/// One look for a device.
#[derive(Clone, Copy)]
struct Search<'a> {
    resources: &'a Resources,
    memory: Bytes,
    avoid: Option<NodeId>,
}

impl Places {
    /// `devices` sorted by node and position.
    pub fn new(devices: Vec<Device>) -> Places {
        let mut places = Places { devices, ..Places::default() };
        for device in &places.devices {
            let backend = device.backend as usize;
            places.free_max[backend] = places.free_max[backend].max(device.free);
            places.idle[backend] += usize::from(device.attempts == 0);
        }
        places
    }

    /// The first place that fits.
    pub fn find(&mut self, request: &Request<'_>) -> Option<Place> {
        if request.avoid.is_some()
            && let Some(place) = self.search(request, request.avoid)
        {
            return Some(place);
        }
        self.search(request, None)
    }

    /// Takes the place.
    pub fn lease(&mut self, place: &Place) {
        self.extremes = None;
        self.occupy(place.index, place.memory);
        let Device { node, same_card, .. } = self.devices[place.index];
        let other = |device: &Device| device.node == node && Some(device.device) == same_card;
        // A node's devices stand side by side.
        let first = self.devices[..place.index].iter().rposition(|device| device.node != node);
        let first = first.map_or(0, |before| before + 1);
        if same_card.is_some()
            && let Some(other) = self.devices[first..].iter().position(other)
        {
            self.occupy(first + other, place.memory);
        }
    }

    fn occupy(&mut self, index: usize, memory: Bytes) {
        let device = &mut self.devices[index];
        device.free = Bytes(device.free.0.saturating_sub(memory.0));
        if device.attempts == 0 {
            self.idle[device.backend as usize] -= 1;
        }
        device.attempts += 1;
    }

    /// Why [`Places::find`] finds nothing; `None` when it does.
    pub fn explain(&mut self, request: &Request<'_>) -> Option<String> {
        if self.find(request).is_some() {
            return None;
        }
        if self.devices.is_empty() {
            return Some("no node is ready".to_owned());
        }
        let mut text = String::new();
        for (resources, memory) in request.resources.iter().zip(request.memory) {
            if !text.is_empty() {
                text.push_str("; or ");
            }
            self.explain_alternative(resources, *memory, &mut text);
        }
        Some(text)
    }

    fn search(&mut self, request: &Request<'_>, avoid: Option<NodeId>) -> Option<Place> {
        for (resources, memory) in request.resources.iter().zip(request.memory) {
            let search = Search { resources, memory: *memory, avoid };
            let place = match resources.fastest {
                true => self.fastest(search),
                false => self.first_of_list(search),
            };
            if place.is_some() {
                return place;
            }
        }
        None
    }

    fn first_of_list(&mut self, search: Search<'_>) -> Option<Place> {
        for software in [false, true] {
            for backend in &search.resources.backend {
                if let Some(place) = self.first_fit(*backend, software, search) {
                    return Some(place);
                }
            }
        }
        None
    }

    fn first_fit(&mut self, backend: BackendKind, software: bool, search: Search<'_>) -> Option<Place> {
        let Search { resources, memory, avoid } = search;
        if self.free_max[backend as usize] < memory {
            return None;
        }
        let mut shared = None;
        let mut free_max = Bytes(0);
        for (index, device) in self.devices.iter().enumerate() {
            if device.backend != backend {
                continue;
            }
            free_max = free_max.max(device.free);
            let taken = device.is_software == software
                && Some(device.node) != avoid
                && resources.takes(backend, device.index);
            if !taken || device.free < memory {
                continue;
            }
            if device.attempts == 0 {
                return Some(self.place(index, memory));
            }
            shared = shared.or(Some(index));
            if self.idle[backend as usize] == 0 {
                break;
            }
        }
        if shared.is_none() {
            self.free_max[backend as usize] = free_max;
        }
        shared.map(|index| self.place(index, memory))
    }

    /// The device with the largest share of its speed for one more.
    fn fastest(&mut self, search: Search<'_>) -> Option<Place> {
        let Search { resources, memory, avoid } = search;
        if resources.backend.iter().all(|backend| self.free_max[*backend as usize] < memory) {
            return None;
        }
        let mut best: Option<(u64, usize)> = None;
        let mut free_max = [Bytes(0); BackendKind::ALL.len()];
        for (index, device) in self.devices.iter().enumerate() {
            let most = &mut free_max[device.backend as usize];
            *most = device.free.max(*most);
            let taken = !device.is_software
                && Some(device.node) != avoid
                && resources.takes(device.backend, device.index);
            if taken && device.free >= memory {
                let share = device.speed() / u64::from(device.attempts + 1);
                if best.is_none_or(|(most, _)| share > most) {
                    best = Some((share, index));
                }
            }
        }
        self.free_max = free_max;
        best.map(|(_, index)| self.place(index, memory))
    }

    fn place(&self, index: usize, memory: Bytes) -> Place {
        let Device { node, device, backend, .. } = self.devices[index];
        Place { node, device, backend, memory, index }
    }

    fn explain_alternative(&mut self, resources: &Resources, memory: Bytes, text: &mut String) {
        let names: Vec<_> = resources.backend.iter().map(|backend| backend.name()).collect();
        let mut names = names.join(" or ");
        let found = match resources.device.is_empty() {
            true => self.extremes_of(resources),
            false => {
                let indices: Vec<_> = resources.device.iter().map(u32::to_string).collect();
                names.push_str(&format!(" {}", indices.join(" or ")));
                let software = !resources.fastest;
                let able = |device: &&(usize, &Device)| {
                    resources.takes(device.1.backend, device.1.index) && (software || !device.1.is_software)
                };
                let able: Vec<_> = self.devices.iter().enumerate().filter(|device| able(&device)).collect();
                let largest = able.iter().min_by_key(|(index, device)| (Reverse(device.total), *index));
                let freest = able.iter().min_by_key(|(index, device)| (Reverse(device.free), *index));
                largest.zip(freest).map(|(largest, freest)| Extremes { largest: largest.0, freest: freest.0 })
            }
        };
        let device = |index: usize| &self.devices[index];
        // Writing to a string cannot fail.
        let _ = match found.map(|found| (device(found.largest), device(found.freest))) {
            Some((largest, _)) if largest.total < memory => write!(
                text,
                "needs {memory} on one {names} device, the largest has {} ({} {} of node {})",
                largest.total,
                largest.backend.name(),
                largest.index,
                largest.node
            ),
            Some((_, freest)) => write!(
                text,
                "needs {memory} on one {names} device, at most {} are free ({} {} of node {})",
                freest.free,
                freest.backend.name(),
                freest.index,
                freest.node
            ),
            None => write!(text, "needs a {names} device, no ready node has one"),
        };
    }

    /// Of all devices that the alternative may have.
    fn extremes_of(&mut self, resources: &Resources) -> Option<Extremes> {
        let extremes = self.extremes();
        let software = usize::from(!resources.fastest);
        let wanted = || resources.backend.iter().filter_map(|backend| extremes[*backend as usize][software]);
        let largest = wanted().map(|best| best.largest);
        let largest = largest.min_by_key(|index| (Reverse(self.devices[*index].total), *index))?;
        let freest = wanted().map(|best| best.freest);
        let freest = freest.min_by_key(|index| (Reverse(self.devices[*index].free), *index))?;
        Some(Extremes { largest, freest })
    }

    fn extremes(&mut self) -> [[Option<Extremes>; 2]; BackendKind::ALL.len()] {
        if let Some(extremes) = self.extremes {
            return extremes;
        }
        let mut extremes = [[None; 2]; BackendKind::ALL.len()];
        for (index, device) in self.devices.iter().enumerate() {
            let of_backend = &mut extremes[device.backend as usize];
            for best in of_backend.iter_mut().skip(usize::from(device.is_software)) {
                let best = best.get_or_insert(Extremes { largest: index, freest: index });
                if device.total > self.devices[best.largest].total {
                    best.largest = index;
                }
                if device.free > self.devices[best.freest].free {
                    best.freest = index;
                }
            }
        }
        self.extremes = Some(extremes);
        extremes
    }
}

impl Device {
    /// As measured; of a device that nobody has measured what such a device has at least.
    fn speed(&self) -> u64 {
        self.speed.unwrap_or(match self.backend {
            BackendKind::Cuda => 10_000_000_000_000,
            BackendKind::Wgpu => 1_000_000_000_000,
            BackendKind::Cpu => 100_000_000_000,
        })
    }
}

#[cfg(test)]
mod tests {
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
}
