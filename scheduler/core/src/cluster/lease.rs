//! Waiting jobs get places: the placement pass, and what an agent is told to start.

use super::live::LiveAttempt;
use super::machine::Cluster;
use super::state::{Job, JobPhase};
use super::{Change, Handled};
use crate::failure::{FailureReason, RetryClass};
use crate::id::{AttemptId, ContentHash, Epoch, JobId, NodeId};
use crate::place::{Device, Place, Places, Request};
use crate::unit::Bytes;
use crate::wire::agent::{Assignment, Outcome, ToAgent};

/// Whether a waiting job can be given a place.
pub(super) enum Readiness {
    Ready,
    /// After a retryable failure.
    BackOff,
    /// This job has not succeeded yet.
    Input(JobId),
    /// This job ended without a result: the waiting one can never run.
    InputLost(JobId),
}

impl Cluster {
    /// Gives places to waiting jobs, first the urgent, then the old ones. A job that does not fit holds up nobody.
    pub(super) fn place_waiting(&mut self, out: &mut Handled) {
        self.live.looked = self.live.now;
        let mut places = self.places();
        loop {
            let mut lost_inputs = false;
            let waiting: Vec<JobId> = self.state.waiting.iter().map(|(_, job)| *job).collect();
            for id in waiting {
                match self.readiness(&self.state.jobs[&id]) {
                    Readiness::BackOff | Readiness::Input(_) => {}
                    Readiness::InputLost(input) => {
                        let message = format!("job {input}, whose result this one needs, left none");
                        let outcome = Outcome::Failed { reason: FailureReason::UserError, message };
                        self.end_job(out, id, outcome, None);
                        lost_inputs = true;
                    }
                    Readiness::Ready => {
                        if let Some(place) = places.find(&request(&self.state.jobs[&id])) {
                            places.lease(&place);
                            self.lease(out, id, &place);
                        }
                    }
                }
            }
            // A job ended for want of its input may itself be the input of another one.
            if !lost_inputs {
                self.live.look_again = false;
                return;
            }
        }
    }

    /// The devices of nodes that take work, with what is left of them.
    pub(super) fn places(&self) -> Places {
        let mut devices = Vec::new();
        for (id, node) in &self.state.nodes {
            let ready = |node: &super::live::LiveNode| node.takes_work(&self.clocks, self.live.now);
            let (Some(facts), true) = (&node.facts, self.live.nodes.get(id).is_some_and(ready)) else {
                continue;
            };
            let first = devices.len();
            let leased = |device| self.state.leased.get(&(*id, device)).copied().unwrap_or_default();
            devices.extend(facts.devices.iter().map(|device| {
                let details = node.details.iter().find(|details| details.index == device.index);
                let same_card = details.and_then(|details| details.same_card);
                let (own, other) = (leased(device.index), same_card.map(leased).unwrap_or_default());
                let taken = own.0.0.saturating_add(other.0.0);
                Device {
                    node: *id,
                    device: device.index,
                    backend: device.backend,
                    // An agent that tells no details has one device of a backend.
                    index: details.map_or(0, |details| details.backend_index),
                    total: device.memory,
                    free: Bytes(device.memory.0.saturating_sub(taken)),
                    attempts: own.1 + other.1,
                    is_software: details.is_some_and(|details| details.is_software),
                    speed: details.and_then(|details| details.gemm),
                    same_card,
                }
            }));
            devices[first..].sort_by_key(|device: &Device| device.device);
        }
        Places::new(devices)
    }

    pub(super) fn readiness(&self, job: &Job) -> Readiness {
        if let JobPhase::Waiting { not_before } = job.phase
            && not_before > self.live.now
        {
            return Readiness::BackOff;
        }
        for input in &job.submission.inputs {
            match self.state.jobs.get(input).map(|input| &input.phase) {
                Some(JobPhase::Ended { outcome: Outcome::Succeeded, output: Some(_), .. }) => {}
                Some(JobPhase::Ended { .. }) | None => return Readiness::InputLost(*input),
                Some(JobPhase::Waiting { .. } | JobPhase::Active) => return Readiness::Input(*input),
            }
        }
        Readiness::Ready
    }

    fn lease(&mut self, out: &mut Handled, job: JobId, place: &Place) {
        let number = self.state.jobs[&job].attempts.len() as u32 + 1;
        let attempt = AttemptId { job, number };
        let change = Change::AttemptLeased {
            attempt,
            epoch: Epoch(self.state.epoch.0 + 1),
            node: place.node,
            device: place.device,
            backend: place.backend,
            memory: place.memory,
            at: self.live.now,
        };
        self.record(out, change);
        self.live.attempts.insert(attempt, LiveAttempt::sent(self.live.now));
        self.send_start(out, attempt);
        self.job_changed(out, job);
    }

    /// Tells the agent to start the attempt: with the lease, or again when the first word was lost on the way.
    pub(super) fn send_start(&mut self, out: &mut Handled, id: AttemptId) {
        let now = self.live.now;
        let Some((node, assignment)) = self.assignment(id) else { return };
        if let Some(live) = self.live.attempts.get_mut(&id) {
            live.heard = now;
        }
        self.due_by(now.after(self.clocks.lost_after));
        out.tell(node, ToAgent::Start(Box::new(assignment)));
    }

    fn assignment(&self, id: AttemptId) -> Option<(NodeId, Assignment)> {
        let job = self.state.jobs.get(&id.job)?;
        let attempt = job.attempt(id.number)?;
        let output = |input: &JobId| match &self.state.jobs.get(input)?.phase {
            JobPhase::Ended { output: Some(output), .. } => Some((*input, output.manifest)),
            JobPhase::Ended { .. } | JobPhase::Waiting { .. } | JobPhase::Active => None,
        };
        let inputs: Vec<(JobId, ContentHash)> = job.submission.inputs.iter().filter_map(output).collect();
        let assignment = Assignment {
            attempt: id,
            epoch: attempt.epoch,
            name: job.submission.name.clone(),
            document: job.submission.document.clone(),
            files: job.submission.files.clone(),
            device: attempt.device,
            backend: attempt.backend,
            memory: attempt.memory,
            inputs,
            resume: attempt.resume,
            lease: self.clocks.lease,
        };
        Some((attempt.node, assignment))
    }
}

/// What the job asks of the fleet now.
pub(super) fn request(job: &Job) -> Request<'_> {
    let last = job.attempts.last();
    let failed_there = last.and_then(|attempt| {
        let (_, reason) = attempt.ended?;
        reason.filter(|reason| reason.retry() != RetryClass::Never).map(|_| attempt.node)
    });
    Request { resources: &job.submission.resources, memory: &job.submission.memory, avoid: failed_there }
}
