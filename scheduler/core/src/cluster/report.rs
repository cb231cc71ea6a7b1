//! What agents say. Every word carries (attempt, epoch); one of an older lease is answered with `Stale`.

use super::live::{LiveAttempt, LiveNode};
use super::machine::Cluster;
use super::state::{Attempt, JobPhase, step};
use super::{Action, Change, Handled};
use crate::artifact::ArtifactRef;
use crate::failure::FailureReason;
use crate::id::{AttemptId, Epoch, NodeId};
use crate::wire::agent::{
    AttemptPhase, AttemptReport, DeviceDetails, FromAgent, NodeFacts, Outcome, ToAgent,
};
use crate::wire::client::NodeState;

impl Cluster {
    pub(super) fn connect(&mut self, out: &mut Handled, node: NodeId) {
        if !self.state.nodes.contains_key(&node) {
            let reason =
                format!("node {node} is not known to this scheduler\nhint: join again with a new token");
            out.tell(node, ToAgent::Refused { reason: reason.clone() });
            out.actions.push(Action::Disconnect { node, reason });
            return;
        }
        let live = self.live.nodes.entry(node).or_insert_with(|| LiveNode::unseen_since(self.live.now));
        live.connected = true;
        live.reported = false;
        self.listen_for(node);
    }

    pub(super) fn disconnect(&mut self, node: NodeId) {
        if let Some(live) = self.live.nodes.get_mut(&node) {
            live.connected = false;
            live.reported = false;
        }
    }

    pub(super) fn hear(&mut self, out: &mut Handled, node: NodeId, message: FromAgent) {
        let now = self.live.now;
        let Some(live) = self.live.nodes.get_mut(&node).filter(|live| live.connected) else { return };
        let is_report = matches!(message, FromAgent::Report { .. } | FromAgent::ReportDevices { .. });
        if !live.reported && !is_report {
            let reason = "the first message of a connection is a report".to_owned();
            out.actions.push(Action::Disconnect { node, reason });
            return;
        }
        let was_away = live.state(&self.clocks, now) != NodeState::Ready;
        live.last_seen = now;
        live.lost = false;
        self.live.look_again |= was_away;
        self.listen_for(node);
        match message {
            FromAgent::Report { facts, attempts } => {
                self.take_facts(out, node, facts, Vec::new());
                self.reconcile(out, node, &attempts);
            }
            FromAgent::ReportDevices { facts, details, attempts } => {
                self.take_facts(out, node, facts, details);
                self.reconcile(out, node, &attempts);
            }
            FromAgent::Beat { attempts } => self.renew(out, node, &attempts),
            FromAgent::Attempt(report) => {
                self.note(out, node, &report);
            }
            FromAgent::Progress { attempt, epoch, progress } => {
                if self.still_leased(out, node, attempt, epoch) {
                    self.live_attempt(attempt).progress = Some(progress);
                    self.job_changed(out, attempt.job);
                }
            }
            FromAgent::CheckpointStored { attempt, epoch, artifact } => {
                if self.still_leased(out, node, attempt, epoch) && self.is_newer_checkpoint(attempt, artifact)
                {
                    self.record(out, Change::CheckpointRecorded { attempt, artifact });
                    self.job_changed(out, attempt.job);
                }
            }
            FromAgent::Ended { attempt, epoch, outcome, output } => {
                if self.current(node, attempt, epoch).is_some() {
                    self.end_attempt(out, attempt, outcome, output);
                } else if !self.ended_by_report(node, attempt, epoch) {
                    out.tell(node, ToAgent::Stale { attempt, epoch });
                }
                // Recorded, or of no interest: either way the agent may forget it.
                out.tell(node, ToAgent::EndRecorded { attempt, epoch });
            }
            FromAgent::Log { attempt, epoch, offset, bytes } => {
                if self.was_leased(node, attempt, epoch) {
                    out.actions.push(Action::AppendLog { node, attempt, epoch, offset, bytes });
                }
            }
            FromAgent::RenewCertificate { certificate_request } => {
                out.actions.push(Action::RenewCertificate { node, certificate_request });
            }
        }
    }

    /// The node's silence from now on will be noticed.
    fn listen_for(&mut self, node: NodeId) {
        let Some(live) = self.live.nodes.get(&node) else { return };
        let suspect = live.last_seen.after(self.clocks.suspect_after);
        self.due_by(suspect.min(self.live.lost_at(live, &self.clocks)));
    }

    /// Records what has changed since the node's last report.
    fn take_facts(&mut self, out: &mut Handled, node: NodeId, facts: NodeFacts, details: Vec<DeviceDetails>) {
        let at = self.live.now;
        let Some(known) = self.state.nodes.get(&node) else { return };
        let (same_facts, same_details) = (known.facts.as_ref() == Some(&facts), known.details == details);
        if same_facts && same_details {
            return;
        }
        self.record(out, Change::NodeReported { node, facts, at });
        if !details.is_empty() {
            self.record(out, Change::DevicesReported { node, details });
        }
    }

    /// The first report of a connection: what we think runs there meets what does.
    fn reconcile(&mut self, out: &mut Handled, node: NodeId, attempts: &[AttemptReport]) {
        if let Some(live) = self.live.nodes.get_mut(&node) {
            live.reported = true;
        }
        self.live.look_again = true;
        let (lease, beat, keep_running) = (self.clocks.lease, self.clocks.beat, self.clocks.keep_running);
        out.tell(node, ToAgent::Welcome { lease, beat, keep_running });
        self.renew(out, node, attempts);
        for (id, epoch) in self.attempts_on(node) {
            let reported = attempts.iter().any(|report| report.attempt == id && report.epoch == epoch);
            let (cancelled, started) = match self.current(node, id, epoch) {
                Some((job, attempt)) => (job.cancel_asked.is_some(), attempt.started.is_some()),
                None => continue,
            };
            if reported && cancelled {
                self.stop(out, id.job);
            } else if !reported && (started || cancelled) {
                let message = format!("node {node} no longer knows of attempt {id}");
                let outcome = Outcome::Failed { reason: FailureReason::RunnerLost, message };
                self.end_attempt(out, id, outcome, None);
            } else if !reported {
                // Leased, but the word got lost on the way.
                self.send_start(out, id);
            }
        }
    }

    /// Renews the leases of these attempts.
    fn renew(&mut self, out: &mut Handled, node: NodeId, reports: &[AttemptReport]) {
        let mut renewed = Vec::new();
        for report in reports {
            if self.note(out, node, report) {
                renewed.push((report.attempt, report.epoch));
            }
        }
        if !renewed.is_empty() {
            out.tell(node, ToAgent::LeaseRenewed { attempts: renewed, lease: self.clocks.lease });
        }
    }

    /// Takes in where an attempt is; false when its lease is over, which the agent is told.
    fn note(&mut self, out: &mut Handled, node: NodeId, report: &AttemptReport) -> bool {
        let (id, now) = (report.attempt, self.live.now);
        if self.is_revivable(node, id, report.epoch) {
            self.record(out, Change::AttemptRevived { attempt: id, at: now });
            self.live.attempts.insert(id, LiveAttempt::sent(now));
        }
        let Some((_, attempt)) = self.current(node, id, report.epoch) else {
            // An end that is recorded already needs no second word than that.
            let message = if self.ended_by_report(node, id, report.epoch) {
                ToAgent::EndRecorded { attempt: id, epoch: report.epoch }
            } else {
                ToAgent::Stale { attempt: id, epoch: report.epoch }
            };
            out.tell(node, message);
            return false;
        };
        let computes = matches!(report.phase, AttemptPhase::Running | AttemptPhase::Checkpointing);
        if computes && attempt.started.is_none() {
            self.record(out, Change::AttemptStarted { attempt: id, at: now });
        }
        let live = self.live_attempt(id);
        let changed = live.phase != Some(report.phase) || live.endpoint != report.endpoint;
        live.phase = Some(report.phase);
        live.endpoint.clone_from(&report.endpoint);
        live.heard = now;
        if changed {
            self.job_changed(out, id.job);
        }
        true
    }

    /// Given up with its node, but the job still waits and the place is free: nothing newer stands against its
    /// lease, so what the runner computed meanwhile (`keep_running`) is not lost.
    fn is_revivable(&self, node: NodeId, id: AttemptId, epoch: Epoch) -> bool {
        let Some(job) = self.state.jobs.get(&id.job) else { return false };
        let Some(attempt) = job.attempts.last().filter(|_| job.attempts.len() == id.number as usize) else {
            return false;
        };
        let node_lost = attempt.ended.is_some_and(|(_, reason)| reason == Some(FailureReason::NodeLost));
        let waits = matches!(job.phase, JobPhase::Waiting { .. }) && job.cancel_asked.is_none();
        waits && node_lost && self.was_leased(node, id, epoch) && self.has_room(attempt)
    }

    fn has_room(&self, attempt: &Attempt) -> bool {
        let facts = self.state.nodes.get(&attempt.node).and_then(|node| node.facts.as_ref());
        let devices = facts.map_or(&[][..], |facts| &facts.devices);
        let leased = self.state.leased.get(&(attempt.node, attempt.device)).map_or(0, |(memory, _)| memory.0);
        devices.iter().any(|device| {
            device.index == attempt.device && leased.saturating_add(attempt.memory.0) <= device.memory.0
        })
    }

    fn still_leased(&mut self, out: &mut Handled, node: NodeId, attempt: AttemptId, epoch: Epoch) -> bool {
        let leased = self.current(node, attempt, epoch).is_some();
        if !leased && !self.ended_by_report(node, attempt, epoch) {
            out.tell(node, ToAgent::Stale { attempt, epoch });
        }
        leased
    }

    /// The attempt, if it had this lease on this node once. Its late log lines are still worth reading.
    fn was_leased(&self, node: NodeId, id: AttemptId, epoch: Epoch) -> bool {
        let attempt = self.state.jobs.get(&id.job).and_then(|job| job.attempt(id.number));
        attempt.is_some_and(|attempt| attempt.epoch == epoch && attempt.node == node)
    }

    /// Ended, and not because its node was given up: then its agent knows of the end.
    fn ended_by_report(&self, node: NodeId, id: AttemptId, epoch: Epoch) -> bool {
        let attempt = self.state.jobs.get(&id.job).and_then(|job| job.attempt(id.number));
        self.was_leased(node, id, epoch)
            && attempt
                .and_then(|attempt| attempt.ended)
                .is_some_and(|(_, reason)| reason != Some(FailureReason::NodeLost))
    }

    /// Agents repeat their newest checkpoint after every break; only news is recorded.
    fn is_newer_checkpoint(&self, attempt: AttemptId, artifact: ArtifactRef) -> bool {
        let newest = self.state.jobs.get(&attempt.job).and_then(|job| job.checkpoints.last());
        match (newest, step(&artifact)) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(newest), step_of_it) => *newest != artifact && step(newest) <= step_of_it,
        }
    }

    fn live_attempt(&mut self, id: AttemptId) -> &mut LiveAttempt {
        let now = self.live.now;
        self.live.attempts.entry(id).or_insert_with(|| LiveAttempt::sent(now))
    }
}
