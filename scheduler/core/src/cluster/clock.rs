//! What follows from nothing but time: nodes fall silent, tokens expire, pauses end.

use super::live::LiveNode;
use super::machine::Cluster;
use super::state::JobPhase;
use super::{Action, Handled};
use crate::failure::FailureReason;
use crate::id::{AttemptId, NodeId};
use crate::unit::Moment;
use crate::wire::agent::{Outcome, ToAgent};
use crate::wire::client::NodeState;

impl Cluster {
    /// When [`super::Event::Tick`] is due; `None`: not before something else happens. Sometimes a little early,
    /// never late: it is worked out anew with each tick only, and events in between can but bring it forward.
    pub fn next_deadline(&self) -> Option<Moment> {
        self.live.due
    }

    /// A tick is due at `moment`, if not before.
    pub(super) fn due_by(&mut self, moment: Moment) {
        self.live.due = Some(self.live.due.map_or(moment, |due| due.min(moment)));
    }

    /// When the next thing happens that follows from nothing but time.
    pub(super) fn deadline(&self) -> Option<Moment> {
        let now = self.live.now;
        let nodes = self.live.nodes.values().filter(|node| !node.lost);
        let nodes = nodes.flat_map(|node| {
            [node.last_seen.after(self.clocks.suspect_after), self.live.lost_at(node, &self.clocks)]
        });
        let tokens = self.state.tokens.values().map(|token| token.expires);
        let pauses = self.state.waiting.iter().filter_map(|(_, job)| match self.state.jobs[job].phase {
            JobPhase::Waiting { not_before } => Some(not_before),
            JobPhase::Active | JobPhase::Ended { .. } => None,
        });
        let attempts = self.live.attempts.iter().filter(|(id, _)| self.on_reporting_node(**id));
        let attempts = attempts.flat_map(|(_, attempt)| {
            let again = attempt.stop_sent.map(|sent| sent.after(self.clocks.stop_grace));
            [Some(attempt.heard.after(self.clocks.lost_after)), again].into_iter().flatten()
        });
        nodes.chain(tokens).chain(pauses).chain(attempts).filter(|moment| *moment > now).min()
    }

    pub(super) fn pass_time(&mut self, out: &mut Handled) {
        self.expire_tokens(out);
        self.lose_silent_nodes(out);
        self.end_silent_attempts(out);
        self.stop_again(out);
        let (looked, now) = (self.live.looked, self.live.now);
        self.live.look_again |= self.state.waiting.iter().any(|(_, job)| match self.state.jobs[job].phase {
            JobPhase::Waiting { not_before } => looked < not_before && not_before <= now,
            JobPhase::Active | JobPhase::Ended { .. } => false,
        });
        self.live.due = self.deadline();
    }

    fn lose_silent_nodes(&mut self, out: &mut Handled) {
        let now = self.live.now;
        let silent = self.live.nodes.iter().filter(|(_, node)| !node.lost);
        let silent = silent.filter(|(_, node)| now >= self.live.lost_at(node, &self.clocks));
        let silent: Vec<NodeId> = silent.map(|(id, _)| *id).collect();
        for id in silent {
            let Some(node) = self.live.nodes.get_mut(&id) else { continue };
            node.lost = true;
            let was_connected = std::mem::replace(&mut node.connected, false);
            node.reported = false;
            let silence = now.since(node.last_seen);
            if was_connected {
                let reason = format!("nothing heard for {silence}");
                out.actions.push(Action::Disconnect { node: id, reason });
            }
            for (attempt, _) in self.attempts_on(id) {
                let message = format!("node {id} was not heard of for {silence}");
                let outcome = Outcome::Failed { reason: FailureReason::NodeLost, message };
                self.end_attempt(out, attempt, outcome, None);
            }
        }
    }

    /// An agent that beats but never names an attempt has lost it. A node that says nothing at all is another matter:
    /// its attempts wait with it.
    fn end_silent_attempts(&mut self, out: &mut Handled) {
        let now = self.live.now;
        let speaks = |id| {
            self.reporting_node(id).is_some_and(|node| node.state(&self.clocks, now) == NodeState::Ready)
        };
        let silent = self
            .live
            .attempts
            .iter()
            .filter(|(id, live)| now >= live.heard.after(self.clocks.lost_after) && speaks(**id));
        let silent: Vec<AttemptId> = silent.map(|(id, _)| *id).collect();
        for id in silent {
            let current = self.state.jobs.get(&id.job).and_then(|job| job.current(id.job));
            let Some((node, epoch)) = current.map(|(_, attempt)| (attempt.node, attempt.epoch)) else {
                continue;
            };
            let message = format!("node {node} does not report attempt {id}");
            let outcome = Outcome::Failed { reason: FailureReason::RunnerLost, message };
            self.end_attempt(out, id, outcome, None);
            out.tell(node, ToAgent::Stale { attempt: id, epoch });
        }
    }

    fn stop_again(&mut self, out: &mut Handled) {
        let now = self.live.now;
        let overdue = |sent: Moment| now >= sent.after(self.clocks.stop_grace);
        let due = self
            .live
            .attempts
            .iter()
            .filter(|(id, live)| live.stop_sent.is_some_and(overdue) && self.on_reporting_node(**id));
        let due: Vec<_> = due.map(|(id, _)| id.job).collect();
        for job in due {
            self.stop(out, job);
        }
    }

    fn on_reporting_node(&self, id: AttemptId) -> bool {
        self.reporting_node(id).is_some()
    }

    fn reporting_node(&self, id: AttemptId) -> Option<&LiveNode> {
        let attempt = self.state.jobs.get(&id.job).and_then(|job| job.attempt(id.number))?;
        self.live.nodes.get(&attempt.node).filter(|node| node.reported)
    }
}
