//! Between agent and scheduler, over the agent's one control stream.

use serde::{Deserialize, Serialize};

use crate::artifact::{ArtifactRef, FileEntry};
use crate::document::BackendKind;
use crate::failure::FailureReason;
use crate::id::{AttemptId, ContentHash, Epoch, JobId};
use crate::unit::{Bytes, Span};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum FromAgent {
    /// First message of a connection: everything the agent knows. The scheduler reconciles against it.
    Report {
        facts: NodeFacts,
        attempts: Vec<AttemptReport>,
    },
    /// Every 5 s; renews the leases of the attempts named in the answer.
    Beat {
        attempts: Vec<AttemptReport>,
    },
    /// One attempt changed.
    Attempt(AttemptReport),
    Progress {
        attempt: AttemptId,
        epoch: Epoch,
        progress: Progress,
    },
    /// A complete checkpoint is stored (blobs first, manifest last).
    CheckpointStored {
        attempt: AttemptId,
        epoch: Epoch,
        artifact: ArtifactRef,
    },
    /// The attempt is over, and what it leaves behind is stored.
    Ended {
        attempt: AttemptId,
        epoch: Epoch,
        outcome: Outcome,
        output: Option<ArtifactRef>,
    },
    Log {
        attempt: AttemptId,
        epoch: Epoch,
        offset: u64,
        bytes: Vec<u8>,
    },
    RenewCertificate {
        certificate_request: Vec<u8>,
    },
    /// In place of `Report`: the devices with all that is known of them.
    ReportDevices {
        facts: NodeFacts,
        /// One for each of the devices in `facts`.
        details: Vec<DeviceDetails>,
        attempts: Vec<AttemptReport>,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToAgent {
    /// Answer to the first report.
    Welcome {
        lease: Span,
        beat: Span,
        keep_running: Span,
    },
    Start(Box<Assignment>),
    Stop {
        attempt: AttemptId,
        epoch: Epoch,
        grace: Span,
    },
    /// These leases run for `lease` from now.
    LeaseRenewed {
        attempts: Vec<(AttemptId, Epoch)>,
        lease: Span,
    },
    /// The end is recorded (or of no interest): the agent may forget the attempt.
    EndRecorded {
        attempt: AttemptId,
        epoch: Epoch,
    },
    /// A report of an older lease: stop that attempt, publish nothing of it.
    Stale {
        attempt: AttemptId,
        epoch: Epoch,
    },
    /// Log bytes before `offset` are on disk.
    LogStored {
        attempt: AttemptId,
        epoch: Epoch,
        offset: u64,
    },
    Certificate {
        certificate: Vec<u8>,
        valid_seconds: u64,
    },
    Refused {
        reason: String,
    },
}

/// What a node is and has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeFacts {
    pub name: String,
    /// Changes with every start of the machine.
    pub boot: String,
    pub build: String,
    pub devices: Vec<DeviceFacts>,
    pub cores: u32,
    pub memory: Bytes,
}

/// A place where an attempt can compute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceFacts {
    /// Position in the node's list, stable for one boot.
    pub index: u32,
    pub backend: BackendKind,
    pub name: String,
    pub memory: Bytes,
}

/// What else is known of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceDetails {
    /// That of its [`DeviceFacts`].
    pub index: u32,
    /// Among the node's devices of its backend.
    pub backend_index: u32,
    pub driver: String,
    pub capability: String,
    /// `f32`, `bf16`; the fastest first.
    pub precisions: Vec<String>,
    /// Computes on the processor: never taken unless it is asked for.
    pub is_software: bool,
    /// The device of another backend that is the same card; both have one memory.
    pub same_card: Option<u32>,
    /// Operations a second of products, in the precision that `precision = "auto"` takes.
    pub gemm: Option<u64>,
    /// The same with NF4 weights.
    pub nf4: Option<u64>,
    /// Bytes a second.
    pub bandwidth: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttemptReport {
    pub attempt: AttemptId,
    pub epoch: Epoch,
    pub phase: AttemptPhase,
    /// Where a serving attempt listens.
    pub endpoint: Option<String>,
}

/// Attempts are leased, prepared, running, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptPhase {
    Leased,
    Prepared,
    Running,
    Checkpointing,
    Ended,
}

/// Everything an agent needs to run one attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    pub attempt: AttemptId,
    pub epoch: Epoch,
    pub name: String,
    /// The user's text.
    pub document: String,
    /// Uploaded files, by their path in the input folder.
    pub files: Vec<FileEntry>,
    pub device: u32,
    pub backend: BackendKind,
    pub memory: Bytes,
    /// Output of other jobs that the document names.
    pub inputs: Vec<(JobId, ContentHash)>,
    /// Continue from here.
    pub resume: Option<ArtifactRef>,
    pub lease: Span,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    Succeeded,
    /// With a message of at most 4 KiB: what, where, remedy.
    Failed {
        reason: FailureReason,
        message: String,
    },
    Cancelled,
}

/// Where a running attempt stands. A value that makes no sense for the kind of job is absent.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// What is going on, for people: `training`, `evaluating stsb`, `downloading model`.
    pub activity: String,
    pub done: u64,
    pub total: Option<u64>,
    /// Unit of `done` and `total`: `step`, `text`, `byte`.
    pub unit: String,
    pub loss: Option<f64>,
    pub tokens_per_second: Option<f64>,
    pub seconds_left: Option<f64>,
}
