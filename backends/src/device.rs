//! Which devices there are, and opening one.

use std::sync::Arc;

use crate::{Backend, Error, cpu, null};

/// A family of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    Cpu,
    Null,
    Cuda,
    Wgpu,
}

impl DeviceKind {
    pub fn name(self) -> &'static str {
        match self {
            DeviceKind::Cpu => "cpu",
            DeviceKind::Null => "null",
            DeviceKind::Cuda => "cuda",
            DeviceKind::Wgpu => "wgpu",
        }
    }
}

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    pub kind: DeviceKind,
    pub name: String,
    /// Worker threads of the cpu backend; 0 elsewhere.
    pub threads: usize,
    /// Two runs of the same program and data give the same bits where this is equal.
    pub numerics_class: String,
}

/// Which device, with what limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceRequest {
    pub kind: DeviceKind,
    /// Worker threads of the cpu backend; absent: one a core.
    pub threads: Option<usize>,
    /// Allocations beyond this are refused.
    pub memory_bytes_max: Option<u64>,
}

impl DeviceRequest {
    pub fn new(kind: DeviceKind) -> Self {
        DeviceRequest { kind, threads: None, memory_bytes_max: None }
    }
}

/// Opens a device.
///
/// # Errors
/// A kind that this build does not have; threads that cannot be started.
pub fn open(request: &DeviceRequest) -> Result<Arc<dyn Backend>, Error> {
    match request.kind {
        DeviceKind::Cpu => Ok(Arc::new(cpu::Cpu::new(request)?)),
        DeviceKind::Null => Ok(Arc::new(null::Null::new(request))),
        DeviceKind::Cuda | DeviceKind::Wgpu => Err(Error::NoBackend { name: request.kind.name() }),
    }
}
