//! The whole of scheduling: `handle(event, now) -> { changes, actions }`.
//!
//! The journal records changes (decisions), never events: replay applies them and decides nothing, so an upgrade
//! cannot rewrite history. The head commits the changes of a batch in one transaction, then performs the actions.
//! The same history gives the same actions.
//!
//! ```text
//! job:      queued → placing → starting → running ⇄ checkpointing → succeeded | failed(reason) | cancelled
//!              ↑________________________________|  a retryable end of the attempt
//! attempt:  leased → prepared → running ⇄ checkpointing → ended
//! node:     ready → suspect (15 s) → lost (30 s) → ready
//! ```

mod clock;
mod clocks;
#[cfg(test)]
mod histories;
mod lease;
mod live;
mod machine;
mod report;
mod retry;
mod state;
mod submit;
#[cfg(test)]
mod tests;
mod token;
mod view;

pub use clocks::{BEAT_MIN, Clocks, ClocksError};
pub use machine::Cluster;
pub use state::ReplayError;
pub use submit::WAITING_MAX;

use serde::{Deserialize, Serialize};

use crate::artifact::{ArtifactRef, FileEntry};
use crate::document::{BackendKind, Choice, Priority, Resources};
use crate::failure::FailureReason;
use crate::id::{AttemptId, ContentHash, Epoch, JobId, NodeId};
use crate::unit::{Bytes, Moment, Span};
use crate::wire::agent::{DeviceDetails, FromAgent, NodeFacts, Outcome, ToAgent};
use crate::wire::client::{Refusal, TokenGrant};

/// Chosen by the head to find the asker again; never stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The scheduler started (after replay).
    Started,
    JobSubmitted {
        ticket: Ticket,
        submission: Submission,
    },
    CancelRequested {
        ticket: Ticket,
        job: JobId,
    },
    /// A token was made (only its hash is kept).
    TokenCreated {
        ticket: Ticket,
        secret_hash: ContentHash,
        grants: TokenGrant,
        valid: Span,
    },
    /// Somebody presented a token; answered by `Action::Admit` or `Action::Refuse`.
    TokenPresented {
        ticket: Ticket,
        secret_hash: ContentHash,
        name: String,
    },
    AgentConnected {
        node: NodeId,
    },
    AgentDisconnected {
        node: NodeId,
    },
    AgentSaid {
        node: NodeId,
        message: FromAgent,
    },
    /// Nothing but time passed.
    Tick,
}

/// A job as it comes from `ctl submit`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Submission {
    /// User name of the submitter.
    pub owner: String,
    /// The user's text; carried, not acted upon.
    pub document: String,
    pub name: String,
    pub kind: String,
    pub priority: Priority,
    pub resources: Vec<Resources>,
    /// One figure for each alternative of `resources`.
    pub memory: Vec<Bytes>,
    pub files: Vec<FileEntry>,
    /// Jobs whose output the document names; refused when unknown, waited for until they have succeeded.
    pub inputs: Vec<JobId>,
    /// How many of its newest checkpoints stay listed (`[checkpoint] keep`).
    pub checkpoints_kept: u32,
}

/// A decision: what replay applies. Grows only at its end; golden files pin the bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Change {
    JobAdded {
        job: JobId,
        submission: Submission,
        at: Moment,
    },
    CancelAsked {
        job: JobId,
        at: Moment,
    },
    AttemptLeased {
        attempt: AttemptId,
        epoch: Epoch,
        node: NodeId,
        device: u32,
        backend: BackendKind,
        memory: Bytes,
        at: Moment,
    },
    AttemptStarted {
        attempt: AttemptId,
        at: Moment,
    },
    CheckpointRecorded {
        attempt: AttemptId,
        artifact: ArtifactRef,
    },
    AttemptEnded {
        attempt: AttemptId,
        reason: Option<FailureReason>,
        at: Moment,
    },
    /// The job waits for a new attempt, not before `not_before`.
    JobRequeued {
        job: JobId,
        not_before: Moment,
    },
    JobEnded {
        job: JobId,
        outcome: Outcome,
        output: Option<ArtifactRef>,
        at: Moment,
    },
    NodeAdded {
        node: NodeId,
        name: String,
        at: Moment,
    },
    NodeReported {
        node: NodeId,
        facts: NodeFacts,
        at: Moment,
    },
    TokenAdded {
        secret_hash: ContentHash,
        grants: TokenGrant,
        expires: Moment,
    },
    TokenUsed {
        secret_hash: ContentHash,
    },
    TokenExpired {
        secret_hash: ContentHash,
    },
    /// The node came back before the job got another place: the attempt goes on under its old lease.
    AttemptRevived {
        attempt: AttemptId,
        at: Moment,
    },
    /// What the alternatives of the job's resources say of devices, beside their backends.
    ChoiceAdded {
        job: JobId,
        choices: Vec<Choice>,
    },
    /// Of the devices in the node's report before.
    DevicesReported {
        node: NodeId,
        details: Vec<DeviceDetails>,
    },
}

impl Change {
    /// For messages and listings of the journal.
    pub fn name(&self) -> &'static str {
        match self {
            Change::JobAdded { .. } => "JobAdded",
            Change::CancelAsked { .. } => "CancelAsked",
            Change::AttemptLeased { .. } => "AttemptLeased",
            Change::AttemptStarted { .. } => "AttemptStarted",
            Change::CheckpointRecorded { .. } => "CheckpointRecorded",
            Change::AttemptEnded { .. } => "AttemptEnded",
            Change::JobRequeued { .. } => "JobRequeued",
            Change::JobEnded { .. } => "JobEnded",
            Change::NodeAdded { .. } => "NodeAdded",
            Change::NodeReported { .. } => "NodeReported",
            Change::TokenAdded { .. } => "TokenAdded",
            Change::TokenUsed { .. } => "TokenUsed",
            Change::TokenExpired { .. } => "TokenExpired",
            Change::AttemptRevived { .. } => "AttemptRevived",
            Change::ChoiceAdded { .. } => "ChoiceAdded",
            Change::DevicesReported { .. } => "DevicesReported",
        }
    }
}

/// What the head has to do after the changes are committed.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    SendAgent {
        node: NodeId,
        message: ToAgent,
    },
    /// Close the node's connection, if it has one.
    Disconnect {
        node: NodeId,
        reason: String,
    },
    Submitted {
        ticket: Ticket,
        job: JobId,
    },
    Cancelled {
        ticket: Ticket,
        job: JobId,
    },
    TokenStored {
        ticket: Ticket,
    },
    /// Sign a certificate.
    Admit {
        ticket: Ticket,
        grants: AdmitAs,
    },
    Refuse {
        ticket: Ticket,
        refusal: Refusal,
    },
    /// Somebody who watches this job should look again.
    JobChanged {
        job: JobId,
    },
    /// These bytes go to the attempt's log file; then tell the agent with `ToAgent::LogStored`.
    AppendLog {
        node: NodeId,
        attempt: AttemptId,
        epoch: Epoch,
        offset: u64,
        bytes: Vec<u8>,
    },
    /// Sign a renewed certificate for the node and send it.
    RenewCertificate {
        node: NodeId,
        certificate_request: Vec<u8>,
    },
}

/// Whom a token admits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdmitAs {
    Node { node: NodeId },
    User { name: String, role: crate::authorize::Role },
}

/// The answer to one event.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Handled {
    pub changes: Vec<Change>,
    pub actions: Vec<Action>,
}
