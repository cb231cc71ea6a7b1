//! From a device's name to a backend.

use std::sync::Arc;

use crate::backend::Backend;
use crate::cpu::Cpu;
use crate::null::Null;
use crate::{Error, Result};

/// Which device, and how much of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceRequest {
    /// `cuda`, `wgpu`, `cpu` or `null`.
    pub backend: String,
    /// Which of several.
    pub index: usize,
    /// Worker threads; every processor if absent.
    pub threads: Option<usize>,
    /// Bytes of buffers and weights at most.
    pub memory_limit: Option<u64>,
    pub precision: Precision,
    /// For `null`: whose memory it counts; the cpu's if absent.
    pub stands_for: Option<DeviceKind>,
    /// For `null`: what a launch takes of a buffer where that device is.
    pub binding_limit: Option<u64>,
}

/// What activations are kept in; sums are taken in f32 whatever it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Precision {
    #[default]
    F32,
    Bf16,
}

impl Precision {
    /// Bytes of one activation.
    pub fn bytes(self) -> usize {
        match self {
            Precision::F32 => 4,
            Precision::Bf16 => 2,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    Cuda,
    Wgpu,
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
        "cuda" => crate::cuda::open(request),
        "wgpu" => crate::wgpu::open(request),
        _ => Err(Error::UnknownBackend { name: request.backend.clone() }),
    }
}
