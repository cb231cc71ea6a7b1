//! What people see of the cluster.

use super::lease::{Readiness, request};
use super::machine::Cluster;
use super::state::{Attempt, Job, JobPhase, step};
use crate::artifact::ArtifactRef;
use crate::id::{AttemptId, JobId, NodeId};
use crate::place::Places;
use crate::unit::Bytes;
use crate::wire::agent::{AttemptPhase, DeviceDetails, DeviceFacts, Outcome};
use crate::wire::client::{AttemptView, DeviceView, JobState, JobView, NodeView, StatusView};

impl Cluster {
    pub fn job(&self, id: JobId) -> Option<JobView> {
        self.state.jobs.get(&id).map(|job| self.view(id, job, &mut self.places()))
    }

    /// All jobs, in the order of submission.
    pub fn jobs(&self) -> Vec<JobView> {
        let mut places = self.places();
        self.state.jobs.iter().map(|(id, job)| self.view(*id, job, &mut places)).collect()
    }

    /// At most `count` jobs, the newest of those before `before` (of all, if absent); the newest first.
    pub fn jobs_before(&self, before: Option<JobId>, count: usize) -> Vec<JobView> {
        let mut places = self.places();
        let jobs = match before {
            Some(before) => self.state.jobs.range(..before),
            None => self.state.jobs.range(..),
        };
        jobs.rev().take(count).map(|(id, job)| self.view(*id, job, &mut places)).collect()
    }

    /// All nodes, in the order of joining. One that has never reported has no devices.
    pub fn nodes(&self) -> Vec<NodeView> {
        let now = self.live.now;
        let view = |(id, node): (&NodeId, &super::state::Node)| {
            let live = self.live.nodes.get(id);
            let facts = node.facts.as_ref();
            NodeView {
                node: *id,
                name: node.name.clone(),
                state: live
                    .map_or(crate::wire::client::NodeState::Lost, |live| live.state(&self.clocks, now)),
                last_seen: live.map_or(node.added, |live| live.last_seen),
                build: facts.map(|facts| facts.build.clone()).unwrap_or_default(),
                cores: facts.map_or(0, |facts| facts.cores),
                memory: facts.map_or(Bytes(0), |facts| facts.memory),
                devices: facts.map_or(Vec::new(), |facts| self.device_views(*id, &facts.devices)),
            }
        };
        self.state.nodes.iter().map(view).collect()
    }

    /// What each node's agent has told of its devices.
    pub fn devices(&self) -> Vec<(NodeId, Vec<DeviceDetails>)> {
        self.state.nodes.iter().map(|(id, node)| (*id, node.details.clone())).collect()
    }

    pub fn status(&self, build: &str) -> StatusView {
        StatusView {
            build: build.to_owned(),
            started: self.live.started,
            now: self.live.now,
            jobs: self.state.jobs.len() as u64,
            nodes: self.state.nodes.len() as u64,
        }
    }

    /// User name of the job's submitter.
    pub fn owner(&self, job: JobId) -> Option<&str> {
        self.state.jobs.get(&job).map(|job| job.submission.owner.as_str())
    }

    /// The job's output, if there is one; then its checkpoints, the newest last, as many as its document keeps.
    pub fn artifacts(&self, job: JobId) -> Option<Vec<ArtifactRef>> {
        let job = self.state.jobs.get(&job)?;
        Some(output(job).into_iter().chain(job.checkpoints.iter().copied()).collect())
    }

    /// The attempt's number of the job's newest attempt; none before the first lease.
    pub fn newest_attempt(&self, job: JobId) -> Option<AttemptId> {
        let count = self.state.jobs.get(&job)?.attempts.len() as u32;
        (count > 0).then_some(AttemptId { job, number: count })
    }

    fn view(&self, id: JobId, job: &Job, places: &mut Places) -> JobView {
        let current = job.current(id).map(|(id, _)| id);
        let live = current.and_then(|id| self.live.attempts.get(&id));
        let (reason, message, ended) = match &job.phase {
            JobPhase::Ended { outcome: Outcome::Failed { reason, message }, at, .. } => {
                (Some(*reason), Some(message.clone()), Some(*at))
            }
            JobPhase::Ended { at, .. } => (None, None, Some(*at)),
            JobPhase::Waiting { .. } | JobPhase::Active => (None, None, None),
        };
        let attempts = job.attempts.iter().enumerate();
        JobView {
            job: id,
            name: job.submission.name.clone(),
            kind: job.submission.kind.clone(),
            priority: job.submission.priority,
            state: self.state_of(id, job),
            waiting: self.waiting(job, places),
            reason,
            message,
            submitted: job.submitted,
            started: job.attempts.iter().find_map(|attempt| attempt.started),
            ended,
            attempts: attempts.map(|(index, attempt)| attempt_view(id, index, attempt)).collect(),
            progress: live.and_then(|live| live.progress.clone()),
            endpoint: live.and_then(|live| live.endpoint.clone()),
            output: output(job),
            checkpoint: job.checkpoints.last().copied(),
            document: job.submission.document.clone(),
        }
    }

    fn state_of(&self, id: JobId, job: &Job) -> JobState {
        match &job.phase {
            JobPhase::Waiting { .. } => JobState::Queued,
            JobPhase::Ended { outcome: Outcome::Succeeded, .. } => JobState::Succeeded,
            JobPhase::Ended { outcome: Outcome::Failed { .. }, .. } => JobState::Failed,
            JobPhase::Ended { outcome: Outcome::Cancelled, .. } => JobState::Cancelled,
            JobPhase::Active => {
                let Some((id, attempt)) = job.current(id) else { return JobState::Placing };
                match self.live.attempts.get(&id).and_then(|live| live.phase) {
                    Some(AttemptPhase::Checkpointing) => JobState::Checkpointing,
                    _ if attempt.started.is_some() => JobState::Running,
                    Some(_) => JobState::Starting,
                    None => JobState::Placing,
                }
            }
        }
    }

    /// Why the job waits, by the code that would give it a place.
    fn waiting(&self, job: &Job, places: &mut Places) -> Option<String> {
        let JobPhase::Waiting { not_before } = job.phase else { return None };
        match self.readiness(job) {
            Readiness::BackOff => {
                let reason =
                    job.attempts.last().and_then(|attempt| attempt.ended).and_then(|(_, reason)| reason);
                let reason = reason.map(|reason| format!(" after {reason}")).unwrap_or_default();
                Some(format!("pauses for {}{reason}", not_before.since(self.live.now)))
            }
            Readiness::Input(input) | Readiness::InputLost(input) => {
                Some(format!("needs the result of job {input}"))
            }
            Readiness::Ready => places.explain(&request(job)),
        }
    }

    fn device_views(&self, node: NodeId, devices: &[DeviceFacts]) -> Vec<DeviceView> {
        let attempts: Vec<(AttemptId, u32)> = self
            .attempts_on(node)
            .into_iter()
            .filter_map(|(id, _)| Some((id, self.state.jobs.get(&id.job)?.attempt(id.number)?.device)))
            .collect();
        let view = |facts: &DeviceFacts| DeviceView {
            facts: facts.clone(),
            memory_leased: self
                .state
                .leased
                .get(&(node, facts.index))
                .map_or(Bytes(0), |(memory, _)| *memory),
            attempts: attempts.iter().filter(|(_, on)| *on == facts.index).map(|(id, _)| *id).collect(),
        };
        devices.iter().map(view).collect()
    }
}

fn output(job: &Job) -> Option<ArtifactRef> {
    match job.phase {
        JobPhase::Ended { output, .. } => output,
        JobPhase::Waiting { .. } | JobPhase::Active => None,
    }
}

fn attempt_view(job: JobId, index: usize, attempt: &Attempt) -> AttemptView {
    AttemptView {
        attempt: AttemptId { job, number: index as u32 + 1 },
        node: attempt.node,
        device: attempt.device,
        backend: attempt.backend,
        leased: attempt.leased,
        ended: attempt.ended.map(|(at, _)| at),
        reason: attempt.ended.and_then(|(_, reason)| reason),
        resumed_from: attempt.resume.as_ref().and_then(step),
    }
}
