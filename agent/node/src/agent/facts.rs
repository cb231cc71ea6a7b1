//! What this node is and has: read from the kernel at the start of the agent; its devices as a probe found them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::thread::available_parallelism;

use motley_scheduler_core::document::BackendKind;
use motley_scheduler_core::unit::Bytes;
use motley_scheduler_core::wire::agent::{DeviceDetails, DeviceFacts, NodeFacts};

use crate::devices::{DeviceRecord, Inventory};
use crate::runner::process::boot_id;

/// What this node tells of itself, and which of a backend's devices each of its devices is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Facts {
    pub(crate) node: NodeFacts,
    /// One for each of the node's devices.
    pub(crate) details: Vec<DeviceDetails>,
}

/// Everything but name and devices is what the kernel says. The cpu is the first device, with the memory that is free
/// now; hardware of `inventory` follows, then software adapters.
pub(crate) fn read(name: String, inventory: &Inventory) -> io::Result<Facts> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let limit = memory_limit();
    let total = meminfo(&text, "MemTotal").ok_or(io::ErrorKind::InvalidData)?.min(limit);
    let available = available(&text, total);
    let cores = available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX));
    let (devices, details) = devices(inventory, available);
    let node = NodeFacts {
        name,
        boot: boot_id()?,
        build: env!("CARGO_PKG_VERSION").to_owned(),
        devices,
        cores,
        memory: total,
    };
    Ok(Facts { node, details })
}

impl Facts {
    /// The index that opens a device of the node's list, among those of its backend.
    pub(crate) fn backend_index(&self, device: u32) -> u32 {
        let details = self.details.iter().find(|details| details.index == device);
        details.map_or(0, |details| details.backend_index)
    }

    /// For schedulers that know no details: software adapters would be taken for hardware.
    pub(crate) fn without_details(&self) -> NodeFacts {
        let software = |device: &DeviceFacts| {
            self.details.iter().any(|details| details.index == device.index && details.is_software)
        };
        let devices = self.node.devices.iter().filter(|device| !software(device)).cloned().collect();
        NodeFacts { devices, ..self.node.clone() }
    }
}

/// A device's memory is the host's where its driver tells none: no more can be had.
fn devices(inventory: &Inventory, available: Bytes) -> (Vec<DeviceFacts>, Vec<DeviceDetails>) {
    let is_processor = |record: &&DeviceRecord| record.backend == BackendKind::Cpu;
    let processor = inventory.devices.iter().find(is_processor).cloned().unwrap_or_else(unprobed_processor);
    let mut records = vec![processor];
    let able = || inventory.devices.iter().filter(|record| !is_processor(record) && record.failure.is_none());
    records.extend(able().filter(|record| !record.is_software).cloned());
    records.extend(able().filter(|record| record.is_software).cloned());
    let rate = |value: f64| (value > 0.0).then_some(value as u64);
    let facts = |(index, record): (usize, &DeviceRecord)| DeviceFacts {
        index: index as u32,
        backend: record.backend,
        name: record.name.clone(),
        memory: record.memory.map_or(available, Bytes),
    };
    let details = |(index, record): (usize, &DeviceRecord)| DeviceDetails {
        index: index as u32,
        backend_index: record.index,
        driver: record.driver.clone(),
        capability: record.capability.clone(),
        precisions: record.precisions.clone(),
        is_software: record.is_software,
        same_card: same_card(&records, index),
        gemm: rate(record.speed()),
        nf4: rate(record.fastest_rates().nf4),
        bandwidth: rate(record.fastest_rates().bandwidth),
    };
    (records.iter().enumerate().map(facts).collect(), records.iter().enumerate().map(details).collect())
}

/// A card that both cuda and wgpu open has the same name there; of several of one name each is paired with the one of
/// its rank.
fn same_card(records: &[DeviceRecord], index: usize) -> Option<u32> {
    let own = &records[index];
    let other = match own.backend {
        BackendKind::Cuda => BackendKind::Wgpu,
        BackendKind::Wgpu => BackendKind::Cuda,
        BackendKind::Cpu => return None,
    };
    let of = |backend: BackendKind| {
        let like = move |record: &&DeviceRecord| {
            record.backend == backend && record.name == own.name && !record.is_software
        };
        records.iter().filter(like)
    };
    let rank = of(own.backend).position(|record| record.index == own.index)?;
    let twin = of(other).nth(rank)?;
    records.iter().position(|record| record == twin).map(|position| position as u32)
}

fn unprobed_processor() -> DeviceRecord {
    let cpu = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| cpu_name(&text));
    DeviceRecord {
        backend: BackendKind::Cpu,
        index: 0,
        name: cpu.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        memory: None,
        driver: String::new(),
        capability: std::env::consts::ARCH.to_owned(),
        is_software: false,
        precisions: vec!["f32".to_owned()],
        rates: BTreeMap::new(),
        failure: None,
    }
}

/// What the cpu device could give a job at this moment.
pub(crate) fn available_memory() -> io::Result<Bytes> {
    let text = fs::read_to_string("/proc/meminfo")?;
    Ok(available(&text, memory_limit()))
}

fn available(meminfo_text: &str, most: Bytes) -> Bytes {
    meminfo(meminfo_text, "MemAvailable").unwrap_or(most).min(most)
}

pub(crate) fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "node".to_owned() } else { name.to_owned() }
}

fn meminfo(text: &str, key: &str) -> Option<Bytes> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Bytes(kibibytes << 10))
}

/// Memory that this container may use.
fn memory_limit() -> Bytes {
    let paths = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limit = |path: &&str| fs::read_to_string(path).ok()?.trim().parse().ok();
    Bytes(paths.iter().find_map(limit).unwrap_or(u64::MAX))
}

fn cpu_name(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_text_becomes_figures() {
        let text = "MemTotal:       16303428 kB\nMemAvailable:    8151714 kB\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(Bytes(16_303_428 << 10)));
        assert_eq!(meminfo(text, "Mem"), None);
        assert_eq!(meminfo("MemTotal: 5", "MemTotal"), None);
        assert_eq!(cpu_name("processor : 0\nmodel name\t: A B\n"), Some("A B".into()));
        let facts = read("n".into(), &Inventory::default()).unwrap().node;
        assert!(facts.cores >= 1 && facts.memory.0 > 0 && !facts.boot.is_empty());
        assert!(facts.devices[0].memory <= facts.memory && facts.devices[0].memory.0 > 0);
    }

    #[test]
    fn the_cpu_is_first_and_cards_of_two_backends_are_told_as_one() {
        use BackendKind::{Cpu, Cuda, Wgpu};
        let record = |backend, index, name: &str| DeviceRecord {
            backend,
            index,
            name: name.into(),
            memory: Some(1 << 30),
            is_software: name == "llvmpipe",
            ..unprobed_processor()
        };
        let mut broken = record(Cuda, 2, "old card");
        broken.failure = Some("its driver is too old".into());
        let records = vec![
            record(Cuda, 0, "card"),
            record(Cuda, 1, "card"),
            broken,
            record(Wgpu, 0, "llvmpipe"),
            record(Wgpu, 1, "card"),
            record(Wgpu, 2, "other card"),
            record(Cpu, 0, "processor"),
        ];
        let inventory = Inventory { devices: records, missing: Vec::new() };
        let facts = read("n".into(), &inventory).unwrap();
        let told: Vec<_> = facts
            .details
            .iter()
            .zip(&facts.node.devices)
            .map(|(details, device)| (device.backend, details.backend_index, details.same_card))
            .collect();
        let wanted = [
            (Cpu, 0, None),
            (Cuda, 0, Some(3)),
            (Cuda, 1, None),
            (Wgpu, 1, Some(1)),
            (Wgpu, 2, None),
            (Wgpu, 0, None),
        ];
        assert_eq!(told, wanted);
        assert_eq!((facts.backend_index(3), facts.backend_index(5), facts.backend_index(9)), (1, 0, 0));
        assert_eq!(facts.without_details().devices.len(), 5);
    }
}
