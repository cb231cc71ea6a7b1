//! How a node is configured: read once at start, written into every attempt's `spec.json`.

use std::ffi::OsString;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use motley_scheduler_core::document::BackendKind;

use crate::devices::{Inventory, Measure, Probe};
use crate::models::ModelSettings;

/// What an agent is started with.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Folder of this node: identity, attempts, blobs. Made when absent; one agent at a time.
    pub state: PathBuf,
    /// `host:port` of the scheduler.
    pub scheduler: String,
    /// For people; absent: the host's name.
    pub name: Option<String>,
    /// Join token; needed only while `state` holds no identity.
    pub token: Option<String>,
    /// Worker threads a job gets at most; absent: all cores.
    pub threads: Option<u32>,
    pub settings: NodeSettings,
    /// A temporary folder around `state`: runners end with this process and the last one removes the folder.
    pub embedded: Option<PathBuf>,
    /// The program of the runner.
    pub runner: RunnerCommand,
    pub devices: DeviceSearch,
}

/// How an agent finds its devices. It never opens a driver itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceSearch {
    /// The processor alone, unmeasured.
    Processor,
    /// These backends, by processes of their own; measured unless there is no choice.
    ToChoose { probe: Probe, backends: Vec<BackendKind> },
    /// Every backend, measured.
    All { probe: Probe },
}

impl DeviceSearch {
    /// Looks. Takes as long as drivers do.
    pub(crate) fn inventory(&self) -> Inventory {
        match self {
            DeviceSearch::Processor => Inventory::default(),
            DeviceSearch::ToChoose { probe, backends } => probe.inventory_to_choose(backends),
            DeviceSearch::All { probe } => probe.inventory(&BackendKind::ALL, Measure::Hardware),
        }
    }
}

/// Node configuration that a runner needs. What a job document means never depends on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSettings {
    pub models: ModelSettings,
}

/// The program of the runner; the attempt folder is appended as the last argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunnerCommand {
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
}

impl NodeSettings {
    /// Reads the environment (`HF_ENDPOINT`, `HF_TOKEN`, ...). Models are kept below `cache`.
    pub fn from_environment(cache: PathBuf) -> Self {
        NodeSettings { models: ModelSettings::from_environment(cache) }
    }
}

impl RunnerCommand {
    /// `<this program> runner FOLDER`.
    ///
    /// # Errors
    /// The path of this program cannot be found out.
    pub fn of_this_program() -> std::io::Result<Self> {
        Ok(RunnerCommand { program: std::env::current_exe()?, arguments: vec!["runner".into()] })
    }
}
