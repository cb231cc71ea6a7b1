//! What a job asks of the fleet: `priority` and `[resources]`.

use serde::{Deserialize, Serialize};

use crate::unit::Bytes;

/// Who goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    Low,
    #[default]
    Normal,
    High,
    Urgent,
}

/// A family of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendKind {
    Cuda,
    Wgpu,
    Cpu,
}

/// `devices = 1` or `devices = "2..8"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceCount {
    pub min: u32,
    pub max: u32,
}

/// `memory = "auto"` (from the planner) or `memory = "12GiB"`, for each device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Memory {
    Auto,
    Exact(Bytes),
}

/// One alternative of `[resources]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Default 1.
    pub devices: DeviceCount,
    /// In order of preference, unless `fastest`.
    pub backend: Vec<BackendKind>,
    /// Default auto.
    pub memory: Memory,
    /// Worker threads of the cpu backend; default: all cores of the node.
    pub threads: Option<u32>,
    /// `backend = "auto"`, the default: of all devices the one that was measured to be the fastest. Not part of the
    /// journal's older record: [`Choice`] carries it.
    #[serde(skip)]
    pub fastest: bool,
    /// `device = 1`: these of the backend's devices alone; default: any. Carried as `fastest`.
    #[serde(skip)]
    pub device: Vec<u32>,
}

/// What an alternative says of the choice among devices, beside its backends.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Choice {
    pub fastest: bool,
    pub device: Vec<u32>,
}

impl BackendKind {
    pub const ALL: [BackendKind; 3] = [BackendKind::Cuda, BackendKind::Wgpu, BackendKind::Cpu];

    pub fn name(self) -> &'static str {
        match self {
            BackendKind::Cuda => "cuda",
            BackendKind::Wgpu => "wgpu",
            BackendKind::Cpu => "cpu",
        }
    }
}

impl Resources {
    /// Takes the choice out, and leaves the one of [`Choice::default`].
    pub fn take_choice(&mut self) -> Choice {
        Choice { fastest: std::mem::take(&mut self.fastest), device: std::mem::take(&mut self.device) }
    }

    pub fn choose(&mut self, choice: &Choice) {
        self.fastest = choice.fastest;
        self.device.clone_from(&choice.device);
    }

    /// Whether a device of the backend, by its index among them, may be taken.
    pub fn takes(&self, backend: BackendKind, index: u32) -> bool {
        self.backend.contains(&backend) && (self.device.is_empty() || self.device.contains(&index))
    }
}

impl Default for Resources {
    fn default() -> Self {
        Resources {
            devices: DeviceCount { min: 1, max: 1 },
            backend: BackendKind::ALL.to_vec(),
            memory: Memory::Auto,
            threads: None,
            fastest: true,
            device: Vec::new(),
        }
    }
}
