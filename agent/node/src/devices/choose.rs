//! From what was asked for to an open device, in the process that computes.

use std::sync::Arc;

use motley_backends::{Backend, DeviceDescription, DeviceKind, DeviceRequest, Found, Precision};
use motley_scheduler_core::document::{BackendKind, ModelPrecision};
use motley_scheduler_core::unit::Bytes;

use super::inventory::Probe;

/// What a command asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceChoice {
    /// Absent: the fastest device that is no software adapter.
    pub backend: Option<BackendKind>,
    /// Which of the backend's devices; absent: the first.
    pub index: Option<u32>,
    pub precision: ModelPrecision,
    /// Worker threads of the cpu.
    pub threads: Option<u32>,
    /// How the fastest is found; absent: the processor is.
    pub probe: Option<Probe>,
}

impl DeviceChoice {
    pub(crate) fn cpu(threads: Option<u32>) -> DeviceChoice {
        DeviceChoice { backend: Some(BackendKind::Cpu), threads, ..DeviceChoice::default() }
    }

    /// The same, with the device that `auto` means.
    pub(crate) fn settled(&self) -> DeviceChoice {
        let (backend, index) = match (self.backend, &self.probe) {
            (Some(backend), _) => (backend, self.index.unwrap_or(0)),
            (None, Some(probe)) => fastest(probe),
            (None, None) => (BackendKind::Cpu, 0),
        };
        DeviceChoice { backend: Some(backend), index: Some(index), probe: None, ..self.clone() }
    }

    /// Opens what was asked for, or the fastest.
    ///
    /// # Errors
    /// As [`open_device`].
    pub(crate) fn open(&self) -> Result<Opened, DeviceError> {
        let DeviceChoice { backend, index, precision, threads, .. } = self.settled();
        let backend = backend.unwrap_or(BackendKind::Cpu);
        open_device(&DeviceAt { backend, index: index.unwrap_or(0), precision, threads, memory: Bytes(0) })
    }
}

fn fastest(probe: &Probe) -> (BackendKind, u32) {
    let inventory = probe.inventory_to_choose(&BackendKind::ALL);
    inventory.fastest().map_or((BackendKind::Cpu, 0), |device| (device.backend, device.index))
}

/// One device, and how it is to be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeviceAt {
    pub(crate) backend: BackendKind,
    pub(crate) index: u32,
    pub(crate) precision: ModelPrecision,
    pub(crate) threads: Option<u32>,
    /// Bytes at most; 0: what the device gives.
    pub(crate) memory: Bytes,
}

/// An open device.
pub(crate) struct Opened {
    pub(crate) backend: Arc<dyn Backend>,
    /// What was not as it was asked for, for people.
    pub(crate) note: Option<String>,
}

/// What keeps a device from being opened.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("this machine has no {asked}; it has {there}\nhint: {remedy}")]
    Absent { asked: String, there: String, remedy: String },
    #[error(transparent)]
    Device(#[from] motley_backends::Error),
}

/// # Errors
/// No such device here, with what there is and the remedy; a device that does not open.
pub(crate) fn open_device(at: &DeviceAt) -> Result<Opened, DeviceError> {
    let kind = device_kind(at.backend);
    // The processor is always there and has one precision: nothing needs to be asked.
    let precisions = match at.backend {
        BackendKind::Cpu if at.index == 0 => vec![Precision::F32],
        _ => described(kind, at.index)?.precisions,
    };
    let (precision, note) = precision(at, &precisions);
    let request = DeviceRequest {
        backend: at.backend.name().to_owned(),
        index: at.index as usize,
        threads: at.threads.map(|threads| threads.max(1) as usize),
        memory_limit: (at.memory.0 > 0).then_some(at.memory.0),
        precision,
        ..DeviceRequest::default()
    };
    Ok(Opened { backend: motley_backends::open(&request)?, note })
}

/// What activations are kept in, and what to say when it is not what was asked for.
fn precision(at: &DeviceAt, offered: &[Precision]) -> (Precision, Option<String>) {
    let has_bf16 = offered.contains(&Precision::Bf16);
    match at.precision {
        ModelPrecision::F32 => (Precision::F32, None),
        ModelPrecision::Bf16 if has_bf16 => (Precision::Bf16, None),
        ModelPrecision::Bf16 => {
            let device = format!("{}:{}", at.backend.name(), at.index);
            (Precision::F32, Some(format!("{device} does not compute in bf16: f32 is used")))
        }
        // Elsewhere 16 bits save memory, but no time.
        ModelPrecision::Auto if at.backend == BackendKind::Cuda && has_bf16 => (Precision::Bf16, None),
        ModelPrecision::Auto => (Precision::F32, None),
    }
}

/// The device of that index, as its driver describes it.
fn described(kind: DeviceKind, index: u32) -> Result<DeviceDescription, DeviceError> {
    let found = motley_backends::discover_backend(kind);
    let wanted = |device: &&DeviceDescription| device.index == index as usize;
    match found.devices.iter().find(wanted) {
        Some(device) => Ok(device.clone()),
        None => Err(absent(&format!("{} device of index {index}", name(kind)), &[found])),
    }
}

/// Says what there is instead. `known` is what has been found already.
pub(crate) fn absent(asked: &str, known: &[Found]) -> DeviceError {
    let of = |kind| {
        let known = known.iter().find(|found| found.kind == kind).cloned();
        known.unwrap_or_else(|| motley_backends::discover_backend(kind))
    };
    let all = BackendKind::ALL.map(|backend| of(device_kind(backend)));
    let shown =
        |device: &DeviceDescription| format!("{}:{} ({})", name(device.kind), device.index, device.name);
    let there: Vec<String> = all.iter().flat_map(|found| &found.devices).map(shown).collect();
    let missing = known.iter().flat_map(|found| &found.missing).next();
    let remedy = match missing {
        Some(missing) => format!(
            "{}: {}; or leave out the backend, and the fastest device is taken",
            missing.what, missing.remedy
        ),
        None => "name one that is here, or leave out backend and device, and the fastest is taken".to_owned(),
    };
    DeviceError::Absent { asked: asked.to_owned(), there: there.join(", "), remedy }
}

pub(crate) fn device_kind(backend: BackendKind) -> DeviceKind {
    match backend {
        BackendKind::Cuda => DeviceKind::Cuda,
        BackendKind::Wgpu => DeviceKind::Wgpu,
        BackendKind::Cpu => DeviceKind::Cpu,
    }
}

fn name(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Cuda => "cuda",
        DeviceKind::Wgpu => "wgpu",
        DeviceKind::Cpu => "cpu",
        DeviceKind::Null => "null",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(backend: BackendKind, index: u32, precision: ModelPrecision) -> DeviceAt {
        DeviceAt { backend, index, precision, threads: Some(1), memory: Bytes(0) }
    }

    #[test]
    fn a_device_that_is_not_here_is_refused_with_what_is() {
        for backend in BackendKind::ALL {
            let error = open_device(&at(backend, 99, ModelPrecision::Auto)).err().unwrap().to_string();
            let asked = format!("this machine has no {} device of index 99; it has ", backend.name());
            assert!(
                error.starts_with(&asked) && error.contains("cpu:0 (") && error.contains("\nhint: "),
                "{error}"
            );
        }
    }

    #[test]
    fn precision_is_what_the_device_offers() {
        let both = [Precision::Bf16, Precision::F32];
        let on = |backend, asked, offered: &[Precision]| precision(&at(backend, 0, asked), offered);
        assert_eq!(on(BackendKind::Cuda, ModelPrecision::Auto, &both), (Precision::Bf16, None));
        assert_eq!(on(BackendKind::Wgpu, ModelPrecision::Auto, &both), (Precision::F32, None));
        assert_eq!(on(BackendKind::Wgpu, ModelPrecision::Bf16, &both), (Precision::Bf16, None));
        assert_eq!(on(BackendKind::Cuda, ModelPrecision::F32, &both), (Precision::F32, None));
        let (used, note) = on(BackendKind::Cuda, ModelPrecision::Bf16, &[Precision::F32]);
        assert_eq!(
            (used, note.as_deref()),
            (Precision::F32, Some("cuda:0 does not compute in bf16: f32 is used"))
        );
        let opened = open_device(&at(BackendKind::Cpu, 0, ModelPrecision::Bf16)).unwrap();
        assert!(opened.note.is_some() && opened.backend.info().precision == Precision::F32);
    }
}
