//! From a device's name to a backend.

use std::sync::Arc;

use crate::backend::Backend;
use crate::cpu::Cpu;
use crate::null::Null;
use crate::{Error, Result};

/// Which device, and how much of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceRequest {
    /// `cpu` or `null`.
    pub backend: String,
    /// Which of several.
    pub index: usize,
    /// Worker threads; every processor if absent.
    pub threads: Option<usize>,
    /// Bytes of buffers and weights at most.
    pub memory_limit: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    Cpu,
    Null,
}

/// Opens a device.
///
/// # Errors
/// An unknown backend, one that is not in this build, or threads that do not start.
pub fn open(request: &DeviceRequest) -> Result<Arc<dyn Backend>> {
    match request.backend.as_str() {
        "cpu" => Ok(Arc::new(Cpu::new(request)?)),
        "null" => Ok(Arc::new(Null::new(request))),
        "cuda" | "wgpu" => Err(Error::NotInThisBuild { name: request.backend.clone() }),
        _ => Err(Error::UnknownBackend { name: request.backend.clone() }),
    }
}
