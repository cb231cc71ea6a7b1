//! What the journal rebuilds: jobs, attempts, nodes, tokens. Only [`State::apply`] changes it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::{Change, Submission};
use crate::artifact::{ArtifactKind, ArtifactRef};
use crate::document::{BackendKind, Choice, Priority};
use crate::failure::FailureReason;
use crate::id::{AttemptId, ContentHash, Epoch, JobId, NodeId};
use crate::unit::{Bytes, Moment};
use crate::wire::agent::{DeviceDetails, NodeFacts, Outcome};
use crate::wire::client::TokenGrant;

#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct State {
    pub jobs: BTreeMap<JobId, Job>,
    pub nodes: BTreeMap<NodeId, Node>,
    pub tokens: BTreeMap<ContentHash, TokenRecord>,
    /// The last epoch given out.
    pub epoch: Epoch,
    /// Jobs without an attempt, in the order in which they get places.
    pub waiting: BTreeSet<(Reverse<Priority>, JobId)>,
    /// Jobs whose last attempt has not ended.
    pub active: BTreeSet<JobId>,
    /// Memory and number of attempts, by device; no entry for an idle one.
    pub leased: BTreeMap<(NodeId, u32), (Bytes, u32)>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Job {
    pub submission: Submission,
    pub submitted: Moment,
    pub cancel_asked: Option<Moment>,
    pub phase: JobPhase,
    /// Numbered from 1.
    pub attempts: Vec<Attempt>,
    /// The newest ones, the last the newest; the number of them is the submission's `checkpoints_kept`, at least 1.
    pub checkpoints: Vec<ArtifactRef>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum JobPhase {
    Waiting { not_before: Moment },
    Active,
    Ended { outcome: Outcome, output: Option<ArtifactRef>, at: Moment },
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Attempt {
    pub epoch: Epoch,
    pub node: NodeId,
    pub device: u32,
    pub backend: BackendKind,
    pub memory: Bytes,
    pub leased: Moment,
    pub started: Option<Moment>,
    pub ended: Option<(Moment, Option<FailureReason>)>,
    /// The checkpoint it continues from.
    pub resume: Option<ArtifactRef>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub name: String,
    pub added: Moment,
    /// Nothing before the first report.
    pub facts: Option<NodeFacts>,
    /// Of the devices in `facts`; none from an agent that tells none.
    pub details: Vec<DeviceDetails>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct TokenRecord {
    pub grants: TokenGrant,
    pub expires: Moment,
    /// Kept until it expires, to tell a used token from one that never was.
    pub used: bool,
}

/// A journal that tells no possible history.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    #[error("{change} of {what}, which is not there at that point")]
    Missing { change: &'static str, what: String },
    #[error("{change} of {what}, which is there already")]
    Duplicate { change: &'static str, what: String },
}

impl State {
    /// Applies one decision; decides nothing.
    pub(super) fn apply(&mut self, change: &Change) -> Result<(), ReplayError> {
        match change {
            Change::JobAdded { job, submission, at } => self.add_job(*job, submission, *at),
            Change::CancelAsked { job, at } => {
                self.job(*job, change)?.cancel_asked = Some(*at);
                Ok(())
            }
            Change::AttemptLeased { attempt, epoch, node, device, backend, memory, at } => {
                let lease = Attempt {
                    epoch: *epoch,
                    node: *node,
                    device: *device,
                    backend: *backend,
                    memory: *memory,
                    leased: *at,
                    started: None,
                    ended: None,
                    resume: None,
                };
                self.lease(*attempt, lease, change)
            }
            Change::AttemptStarted { attempt, at } => {
                self.attempt(*attempt, change)?.started = Some(*at);
                Ok(())
            }
            Change::CheckpointRecorded { attempt, artifact } => {
                self.job(attempt.job, change)?.record_checkpoint(*artifact);
                Ok(())
            }
            Change::AttemptEnded { attempt, reason, at } => {
                self.end_attempt(*attempt, (*at, *reason), change)
            }
            Change::JobRequeued { job, not_before } => {
                let phase = JobPhase::Waiting { not_before: *not_before };
                self.set_phase(*job, phase, change)
            }
            Change::JobEnded { job, outcome, output, at } => {
                let phase = JobPhase::Ended { outcome: outcome.clone(), output: *output, at: *at };
                self.set_phase(*job, phase, change)
            }
            Change::NodeAdded { node, name, at } => {
                let added = Node { name: name.clone(), added: *at, facts: None, details: Vec::new() };
                match self.nodes.insert(*node, added) {
                    None => Ok(()),
                    Some(_) => Err(duplicate(change, format!("node {node}"))),
                }
            }
            Change::NodeReported { node, facts, at: _ } => self.node(*node, change).map(|known| {
                (known.facts, known.details) = (Some(facts.clone()), Vec::new());
            }),
            Change::DevicesReported { node, details } => {
                self.node(*node, change).map(|known| known.details.clone_from(details))
            }
            Change::ChoiceAdded { job, choices } => self.choose(*job, choices, change),
            Change::TokenAdded { secret_hash, grants, expires } => {
                let record = TokenRecord { grants: grants.clone(), expires: *expires, used: false };
                self.tokens.insert(*secret_hash, record);
                Ok(())
            }
            Change::TokenUsed { secret_hash } => {
                let record = self.tokens.get_mut(secret_hash);
                record.ok_or_else(|| missing(change, "a token".to_owned()))?.used = true;
                Ok(())
            }
            Change::TokenExpired { secret_hash } => {
                let record = self.tokens.remove(secret_hash);
                record.map(|_| ()).ok_or_else(|| missing(change, "a token".to_owned()))
            }
            Change::AttemptRevived { attempt, at: _ } => self.revive(*attempt, change),
        }
    }

    fn add_job(&mut self, id: JobId, submission: &Submission, at: Moment) -> Result<(), ReplayError> {
        self.waiting.insert((Reverse(submission.priority), id));
        let job = Job {
            submission: submission.clone(),
            submitted: at,
            cancel_asked: None,
            phase: JobPhase::Waiting { not_before: at },
            attempts: Vec::new(),
            checkpoints: Vec::new(),
        };
        match self.jobs.insert(id, job) {
            None => Ok(()),
            Some(_) => Err(ReplayError::Duplicate { change: "JobAdded", what: format!("job {id}") }),
        }
    }

    fn choose(&mut self, job: JobId, choices: &[Choice], change: &Change) -> Result<(), ReplayError> {
        let resources = &mut self.job(job, change)?.submission.resources;
        for (resources, choice) in resources.iter_mut().zip(choices) {
            resources.choose(choice);
        }
        Ok(())
    }

    fn lease(&mut self, id: AttemptId, mut lease: Attempt, change: &Change) -> Result<(), ReplayError> {
        let (place, memory) = ((lease.node, lease.device), lease.memory);
        self.epoch = self.epoch.max(lease.epoch);
        let job = self.job(id.job, change)?;
        if id.number as usize != job.attempts.len() + 1 {
            return Err(duplicate(change, format!("attempt {id}")));
        }
        lease.resume = job.checkpoints.last().copied();
        job.attempts.push(lease);
        self.occupy(place, memory);
        self.set_phase(id.job, JobPhase::Active, change)
    }

    fn revive(&mut self, id: AttemptId, change: &Change) -> Result<(), ReplayError> {
        let attempt = self.attempt(id, change)?;
        let (place, memory) = ((attempt.node, attempt.device), attempt.memory);
        if attempt.ended.take().is_none() {
            return Err(duplicate(change, format!("attempt {id}")));
        }
        self.occupy(place, memory);
        self.set_phase(id.job, JobPhase::Active, change)
    }

    fn occupy(&mut self, place: (NodeId, u32), memory: Bytes) {
        let entry = self.leased.entry(place).or_default();
        *entry = (Bytes(entry.0.0.saturating_add(memory.0)), entry.1 + 1);
    }

    fn end_attempt(
        &mut self,
        id: AttemptId,
        end: (Moment, Option<FailureReason>),
        change: &Change,
    ) -> Result<(), ReplayError> {
        let attempt = self.attempt(id, change)?;
        if attempt.ended.replace(end).is_some() {
            return Err(duplicate(change, format!("end of attempt {id}")));
        }
        let (place, memory) = ((attempt.node, attempt.device), attempt.memory);
        if let Some((leased, count)) = self.leased.get_mut(&place) {
            *leased = Bytes(leased.0.saturating_sub(memory.0));
            *count -= 1;
            if *count == 0 {
                self.leased.remove(&place);
            }
        }
        Ok(())
    }

    fn set_phase(&mut self, id: JobId, phase: JobPhase, change: &Change) -> Result<(), ReplayError> {
        let job = self.job(id, change)?;
        let place = (Reverse(job.submission.priority), id);
        let (waiting, active) =
            (matches!(phase, JobPhase::Waiting { .. }), matches!(phase, JobPhase::Active));
        job.phase = phase;
        self.waiting.remove(&place);
        self.active.remove(&id);
        if waiting {
            self.waiting.insert(place);
        }
        if active {
            self.active.insert(id);
        }
        Ok(())
    }

    fn node(&mut self, id: NodeId, change: &Change) -> Result<&mut Node, ReplayError> {
        self.nodes.get_mut(&id).ok_or_else(|| missing(change, format!("node {id}")))
    }

    fn job(&mut self, id: JobId, change: &Change) -> Result<&mut Job, ReplayError> {
        self.jobs.get_mut(&id).ok_or_else(|| missing(change, format!("job {id}")))
    }

    fn attempt(&mut self, id: AttemptId, change: &Change) -> Result<&mut Attempt, ReplayError> {
        let index = (id.number as usize).checked_sub(1);
        let attempts = self.jobs.get_mut(&id.job).map(|job| &mut job.attempts);
        let attempt = attempts.zip(index).and_then(|(attempts, index)| attempts.get_mut(index));
        attempt.ok_or_else(|| missing(change, format!("attempt {id}")))
    }
}

impl Job {
    /// The attempt that has not ended.
    pub(super) fn current(&self, job: JobId) -> Option<(AttemptId, &Attempt)> {
        let attempt = self.attempts.last().filter(|attempt| attempt.ended.is_none())?;
        Some((AttemptId { job, number: self.attempts.len() as u32 }, attempt))
    }

    pub(super) fn attempt(&self, number: u32) -> Option<&Attempt> {
        self.attempts.get((number as usize).checked_sub(1)?)
    }

    fn record_checkpoint(&mut self, artifact: ArtifactRef) {
        // A repeated report changes nothing; a step that comes again (a resumed attempt) replaces the old one.
        self.checkpoints.retain(|known| step(known) < step(&artifact));
        self.checkpoints.push(artifact);
        let kept = (self.submission.checkpoints_kept as usize).max(1);
        let excess = self.checkpoints.len().saturating_sub(kept);
        self.checkpoints.drain(..excess);
    }
}

/// Optimizer steps behind a checkpoint.
pub(super) fn step(artifact: &ArtifactRef) -> Option<u64> {
    match artifact.kind {
        ArtifactKind::Checkpoint { step } => Some(step),
        ArtifactKind::Output => None,
    }
}

fn missing(change: &Change, what: String) -> ReplayError {
    ReplayError::Missing { change: change.name(), what }
}

fn duplicate(change: &Change, what: String) -> ReplayError {
    ReplayError::Duplicate { change: change.name(), what }
}
