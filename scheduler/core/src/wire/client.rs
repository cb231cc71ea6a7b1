//! Between `ctl` and scheduler: one stream a request, one or more replies on it.

use serde::{Deserialize, Serialize};

use super::agent::{DeviceDetails, DeviceFacts, Progress};
use crate::artifact::{ArtifactRef, FileEntry};
use crate::authorize::Role;
use crate::document::{BackendKind, Priority};
use crate::failure::FailureReason;
use crate::id::{AttemptId, JobId, NodeId};
use crate::unit::{Bytes, Moment, Span};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum FromClient {
    /// Files must be stored before. `memory` is the resolved figure of each alternative of `[resources]`.
    Submit {
        document: String,
        files: Vec<FileEntry>,
        memory: Vec<Bytes>,
    },
    /// The newest jobs, as many as a list holds. Reply `Jobs`.
    Jobs,
    Job {
        job: JobId,
    },
    Cancel {
        job: JobId,
    },
    /// Log bytes from `offset` on; with `follow`, until the job ends. Replies `Log`…, then `Done`.
    Logs {
        job: JobId,
        attempt: Option<u32>,
        offset: u64,
        follow: bool,
    },
    /// Replies `Job` whenever the job changes (at most twice a second), then `Done` when it has ended.
    Watch {
        job: JobId,
    },
    Nodes,
    /// The output manifest, or the newest checkpoint when there is no output yet.
    Artifacts {
        job: JobId,
    },
    CreateToken {
        grants: TokenGrant,
        valid: Span,
    },
    Status,
    /// At most `count` jobs, the newest of those before `before` (of all, if absent). Reply `Jobs`, the newest last, each
    /// without its document and with the first line of its message alone; fewer where more would not fit one message.
    JobsBefore {
        before: Option<JobId>,
        count: u32,
    },
    /// What nodes have told of their devices beside what `Nodes` shows.
    Devices,
}

/// What a join token makes of its bearer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenGrant {
    Node,
    User { name: String, role: Role },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToClient {
    Submitted {
        job: JobId,
    },
    Jobs(Vec<JobView>),
    Job(Box<JobView>),
    Cancelled {
        job: JobId,
    },
    Log {
        attempt: AttemptId,
        offset: u64,
        bytes: Vec<u8>,
    },
    Done,
    Nodes(Vec<NodeView>),
    Artifacts(Vec<ArtifactRef>),
    Token {
        token: String,
        valid: Span,
    },
    Status(StatusView),
    Refused(Refusal),
    /// None of a node whose agent tells none.
    Devices(Vec<(NodeId, Vec<DeviceDetails>)>),
}

/// Why a request was not served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub kind: RefusalKind,
    pub message: String,
    pub hint: Option<String>,
}

impl Refusal {
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Refusal {
        Refusal { kind, message: message.into(), hint: None }
    }

    pub fn with_hint(self, hint: impl Into<String>) -> Refusal {
        Refusal { hint: Some(hint.into()), ..self }
    }

    /// From the text of an error, whose remedy stands behind `hint:` on a line of its own.
    pub fn from_text(kind: RefusalKind, text: &str) -> Refusal {
        match text.split_once("\nhint: ") {
            Some((message, hint)) => Refusal::new(kind, message).with_hint(hint),
            None => Refusal::new(kind, text),
        }
    }
}

/// Each with its exit code of `ctl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalKind {
    /// Exit 2.
    Usage,
    /// Exit 3.
    NotFound,
    /// Exit 4.
    Denied,
    /// Exit 1.
    Failed,
}

/// `queued → placing → starting → running ⇄ checkpointing → succeeded | failed | cancelled`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    Queued,
    Placing,
    Starting,
    Running,
    Checkpointing,
    Succeeded,
    Failed,
    Cancelled,
}

impl JobState {
    pub fn has_ended(self) -> bool {
        matches!(self, JobState::Succeeded | JobState::Failed | JobState::Cancelled)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobView {
    pub job: JobId,
    pub name: String,
    pub kind: String,
    pub priority: Priority,
    pub state: JobState,
    /// Why it waits, while queued: from the placement code itself.
    pub waiting: Option<String>,
    pub reason: Option<FailureReason>,
    pub message: Option<String>,
    pub submitted: Moment,
    pub started: Option<Moment>,
    pub ended: Option<Moment>,
    pub attempts: Vec<AttemptView>,
    pub progress: Option<Progress>,
    pub endpoint: Option<String>,
    pub output: Option<ArtifactRef>,
    pub checkpoint: Option<ArtifactRef>,
    pub document: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttemptView {
    pub attempt: AttemptId,
    pub node: NodeId,
    pub device: u32,
    pub backend: BackendKind,
    pub leased: Moment,
    pub ended: Option<Moment>,
    pub reason: Option<FailureReason>,
    /// The optimizer step it continued from.
    pub resumed_from: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    pub node: NodeId,
    pub name: String,
    pub state: NodeState,
    pub last_seen: Moment,
    pub build: String,
    pub cores: u32,
    pub memory: Bytes,
    pub devices: Vec<DeviceView>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    Ready,
    Suspect,
    Lost,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceView {
    pub facts: DeviceFacts,
    pub memory_leased: Bytes,
    pub attempts: Vec<AttemptId>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusView {
    pub build: String,
    pub started: Moment,
    pub now: Moment,
    pub jobs: u64,
    pub nodes: u64,
}
