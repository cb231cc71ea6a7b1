//! Which device a job gets, and why a job waits: one piece of code answers both.
//!
//! First fit in a fixed order: alternatives of the document, backends in the order of preference, then devices by
//! node and index, idle ones before shared ones. A device is shared as far as its memory goes. The same fleet and
//! the same job give the same place.

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
    pub total: Bytes,
    pub free: Bytes,
    pub idle: bool,
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
    /// For [`Places::explain`], until the next lease.
    extremes: Option<[Option<Extremes>; BackendKind::ALL.len()]>,
}

/// Positions of the first device with the most memory, and of the first with the most free memory, of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extremes {
    largest: usize,
    freest: usize,
}

impl Places {
    /// `devices` sorted by node and index.
    pub fn new(devices: Vec<Device>) -> Places {
        let mut places = Places { devices, ..Places::default() };
        for device in &places.devices {
            let backend = device.backend as usize;
            places.free_max[backend] = places.free_max[backend].max(device.free);
            places.idle[backend] += usize::from(device.idle);
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
        let device = &mut self.devices[place.index];
        device.free = Bytes(device.free.0.saturating_sub(place.memory.0));
        if std::mem::replace(&mut device.idle, false) {
            self.idle[place.backend as usize] -= 1;
        }
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
            for backend in &resources.backend {
                if let Some(place) = self.first_fit(*backend, *memory, avoid) {
                    return Some(place);
                }
            }
        }
        None
    }

    fn first_fit(&mut self, backend: BackendKind, memory: Bytes, avoid: Option<NodeId>) -> Option<Place> {
        if self.free_max[backend as usize] < memory {
            return None;
        }
        let mut shared = None;
        let mut free_max = Bytes(0);
        for (index, device) in self.devices.iter().enumerate() {
            if device.backend != backend || Some(device.node) == avoid {
                continue;
            }
            free_max = free_max.max(device.free);
            if device.free < memory {
                continue;
            }
            if device.idle {
                return Some(self.place(index, memory));
            }
            shared = shared.or(Some(index));
            if self.idle[backend as usize] == 0 {
                break;
            }
        }
        if shared.is_none() && avoid.is_none() {
            self.free_max[backend as usize] = free_max;
        }
        shared.map(|index| self.place(index, memory))
    }

    fn place(&self, index: usize, memory: Bytes) -> Place {
        let Device { node, device, backend, .. } = self.devices[index];
        Place { node, device, backend, memory, index }
    }

    fn explain_alternative(&mut self, resources: &Resources, memory: Bytes, text: &mut String) {
        let names: Vec<_> = resources.backend.iter().map(|backend| backend.name()).collect();
        let names = names.join(" or ");
        let extremes = self.extremes();
        let wanted = || resources.backend.iter().filter_map(|backend| extremes[*backend as usize]);
        let device = |index: usize| &self.devices[index];
        let largest =
            wanted().map(|best| best.largest).min_by_key(|index| (Reverse(device(*index).total), *index));
        let freest =
            wanted().map(|best| best.freest).min_by_key(|index| (Reverse(device(*index).free), *index));
        // Writing to a string cannot fail.
        let _ = match (largest.map(device), freest.map(device)) {
            (Some(largest), _) if largest.total < memory => write!(
                text,
                "needs {memory} on one {names} device, the largest has {} ({} {} of node {})",
                largest.total,
                largest.backend.name(),
                largest.device,
                largest.node
            ),
            (_, Some(freest)) => write!(
                text,
                "needs {memory} on one {names} device, at most {} are free ({} {} of node {})",
                freest.free,
                freest.backend.name(),
                freest.device,
                freest.node
            ),
            (_, None) => write!(text, "needs a {names} device, no ready node has one"),
        };
    }

    fn extremes(&mut self) -> [Option<Extremes>; BackendKind::ALL.len()] {
        if let Some(extremes) = self.extremes {
            return extremes;
        }
        let mut extremes = [None; BackendKind::ALL.len()];
        for (index, device) in self.devices.iter().enumerate() {
            let best =
                extremes[device.backend as usize].get_or_insert(Extremes { largest: index, freest: index });
            if device.total > self.devices[best.largest].total {
                best.largest = index;
            }
            if device.free > self.devices[best.freest].free {
                best.freest = index;
            }
        }
        self.extremes = Some(extremes);
        extremes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::BackendKind::{Cpu, Cuda, Wgpu};

    const GIB: u64 = 1 << 30;

    fn device(node: u64, device: u32, backend: BackendKind, free: u64) -> Device {
        let total = Bytes(16 * GIB);
        Device { node: NodeId(node), device, backend, total, free: Bytes(free * GIB), idle: free == 16 }
    }

    fn ask(backend: &[BackendKind]) -> Vec<Resources> {
        vec![Resources { backend: backend.to_vec(), ..Resources::default() }]
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
}
