//! The cluster and its one entrance, `handle`. The parts are filed by what they decide.

use super::live::{Live, LiveAttempt, LiveNode};
use super::state::{Attempt, Job, ReplayError, State};
use super::{Action, Change, Clocks, Event, Handled, Ticket};
use crate::id::{AttemptId, Epoch, JobId, NodeId};
use crate::unit::Moment;
use crate::wire::agent::ToAgent;
use crate::wire::client::Refusal;

/// Jobs, attempts, nodes and tokens, and every rule about them. Reads no clock: time is an argument.
#[derive(Debug, Clone)]
pub struct Cluster {
    pub(super) clocks: Clocks,
    pub(super) state: State,
    pub(super) live: Live,
}

impl Cluster {
    /// A cluster in which nothing has happened.
    pub fn new(clocks: Clocks) -> Cluster {
        Cluster { clocks, state: State::default(), live: Live::default() }
    }

    /// The cluster that these changes made; then send it [`Event::Started`].
    ///
    /// # Errors
    /// The changes are not those of one history: the journal is damaged.
    pub fn replay(clocks: Clocks, changes: impl IntoIterator<Item = Change>) -> Result<Cluster, ReplayError> {
        let mut cluster = Cluster::new(clocks);
        for change in changes {
            cluster.state.apply(&change)?;
        }
        Ok(cluster)
    }

    /// Decides what follows from `event`. The changes are applied already when this returns: a caller that cannot
    /// store them must not go on with this cluster.
    pub fn handle(&mut self, event: Event, now: Moment) -> Handled {
        if self.has_overslept(now) {
            self.wake(now);
        }
        self.live.now = self.live.now.max(now);
        let mut handled = Handled::default();
        let out = &mut handled;
        match event {
            Event::Started => self.start(),
            Event::JobSubmitted { ticket, submission } => self.submit(out, ticket, submission),
            Event::CancelRequested { ticket, job } => self.cancel(out, ticket, job),
            Event::TokenCreated { ticket, secret_hash, grants, valid } => {
                self.add_token(out, ticket, (secret_hash, grants, valid));
            }
            Event::TokenPresented { ticket, secret_hash, name } => {
                self.use_token(out, ticket, secret_hash, name);
            }
            Event::AgentConnected { node } => self.connect(out, node),
            Event::AgentDisconnected { node } => self.disconnect(node),
            Event::AgentSaid { node, message } => self.hear(out, node, message),
            Event::Tick => self.pass_time(out),
        }
        if self.live.look_again {
            self.live.look_again = false;
            self.place_waiting(out);
        }
        handled
    }

    /// After a start nobody is connected, and nobody is lost before the grace has passed.
    fn start(&mut self) {
        let now = self.live.now;
        self.live = Live { started: now, listening: now, now, looked: now, ..Live::default() };
        for node in self.state.nodes.keys() {
            self.live.nodes.insert(*node, LiveNode::unseen_since(now));
        }
        for job in &self.state.active {
            if let Some((id, _)) = self.state.jobs[job].current(*job) {
                self.live.attempts.insert(id, LiveAttempt::sent(now));
            }
        }
        self.live.due = self.deadline();
    }

    /// Nobody called when it was time: the machine slept, or had no processor to spare. What looks like the
    /// agents' silence was ours.
    fn has_overslept(&self, now: Moment) -> bool {
        let late = |due: Moment| now.since(due) > self.clocks.suspect_after;
        late(self.live.now) && self.next_deadline().is_some_and(late)
    }

    fn wake(&mut self, now: Moment) {
        self.live.listening = now;
        for attempt in self.live.attempts.values_mut() {
            attempt.heard = now;
        }
    }

    /// Decides: applies the change and hands it out.
    pub(super) fn record(&mut self, out: &mut Handled, change: Change) {
        let applied = self.state.apply(&change);
        debug_assert_eq!(applied, Ok(()));
        out.changes.push(change);
    }

    pub(super) fn job_changed(&self, out: &mut Handled, job: JobId) {
        let action = Action::JobChanged { job };
        if !out.actions.contains(&action) {
            out.actions.push(action);
        }
    }

    /// The job's running attempt, if it is this one under this lease on this node.
    pub(super) fn current(&self, node: NodeId, id: AttemptId, epoch: Epoch) -> Option<(&Job, &Attempt)> {
        let job = self.state.jobs.get(&id.job)?;
        let (current, attempt) = job.current(id.job)?;
        (current == id && attempt.epoch == epoch && attempt.node == node).then_some((job, attempt))
    }

    /// Attempts that should be on the node.
    pub(super) fn attempts_on(&self, node: NodeId) -> Vec<(AttemptId, Epoch)> {
        let current = self.state.active.iter().filter_map(|job| self.state.jobs[job].current(*job));
        current.filter(|(_, attempt)| attempt.node == node).map(|(id, attempt)| (id, attempt.epoch)).collect()
    }
}

impl Handled {
    pub(super) fn tell(&mut self, node: NodeId, message: ToAgent) {
        self.actions.push(Action::SendAgent { node, message });
    }

    pub(super) fn refuse(&mut self, ticket: Ticket, refusal: Refusal) {
        self.actions.push(Action::Refuse { ticket, refusal });
    }
}
