//! What this node is and has: read from the kernel at the start of the agent.

use std::fs;
use std::io;
use std::thread::available_parallelism;

use motley_scheduler_core::document::BackendKind;
use motley_scheduler_core::unit::Bytes;
use motley_scheduler_core::wire::agent::{DeviceFacts, NodeFacts};

use crate::runner::process::boot_id;

/// Everything but the name is what the kernel says; one device, the cpu, with the memory that is free now.
pub(crate) fn read(name: String) -> io::Result<NodeFacts> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let limit = memory_limit();
    let total = meminfo(&text, "MemTotal").ok_or(io::ErrorKind::InvalidData)?.min(limit);
    let available = available(&text, total);
    let cores = available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX));
    let cpu = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| cpu_name(&text));
    let device = DeviceFacts {
        index: 0,
        backend: BackendKind::Cpu,
        name: cpu.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        memory: available,
    };
    Ok(NodeFacts {
        name,
        boot: boot_id()?,
        build: env!("CARGO_PKG_VERSION").to_owned(),
        devices: vec![device],
        cores,
        memory: total,
    })
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
        let facts = read("n".into()).unwrap();
        assert!(facts.cores >= 1 && facts.memory.0 > 0 && !facts.boot.is_empty());
        assert!(facts.devices[0].memory <= facts.memory && facts.devices[0].memory.0 > 0);
    }
}
