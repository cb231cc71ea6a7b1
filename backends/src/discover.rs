//! What devices this machine has, without opening one for work.

use crate::open::{DeviceKind, Precision};

/// What one backend finds on this machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    pub kind: DeviceKind,
    pub devices: Vec<DeviceDescription>,
    /// What is missing for this backend, or for all of its speed.
    pub missing: Vec<Missing>,
}

/// A device as its driver describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceDescription {
    pub kind: DeviceKind,
    /// The index that opens it.
    pub index: usize,
    /// `NVIDIA H100 80GB HBM3`
    pub name: String,
    /// Bytes on the device; absent where the driver does not tell.
    pub memory: Option<u64>,
    /// `580.159.04`, `Mesa 22.3.6 (LLVM 15.0.6)`
    pub driver: String,
    /// What it can do, in the driver's terms: `sm_90`, `Vulkan, f16, subgroups of 32`.
    pub capability: String,
    /// It computes on the processor: for correctness, never chosen for speed.
    pub is_software: bool,
    /// The fastest first.
    pub precisions: Vec<Precision>,
}

/// Something that is not there, and how to get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    pub what: String,
    pub remedy: String,
}

/// Asks every backend that computes. Opens drivers: call it where a hanging driver hangs nobody else.
pub fn discover() -> Vec<Found> {
    [DeviceKind::Cuda, DeviceKind::Wgpu, DeviceKind::Cpu].map(discover_backend).to_vec()
}

/// As [`discover`], one backend alone. The backend that only counts has no devices.
pub fn discover_backend(kind: DeviceKind) -> Found {
    match kind {
        DeviceKind::Cuda => crate::cuda::discover(),
        DeviceKind::Wgpu => crate::wgpu::discover(),
        DeviceKind::Cpu => crate::cpu::discover(),
        DeviceKind::Null => Found { kind, devices: Vec::new(), missing: Vec::new() },
    }
}
