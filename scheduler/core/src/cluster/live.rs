//! What is known of nodes and attempts right now and never journalled: who is connected, when they were last heard
//! of, how far they are. A restart forgets it; the agents' reports bring it back.

use std::collections::BTreeMap;

use super::Clocks;
use crate::id::{AttemptId, NodeId};
use crate::unit::Moment;
use crate::wire::agent::{AttemptPhase, Progress};
use crate::wire::client::NodeState;

#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Live {
    /// When this scheduler started.
    pub started: Moment,
    /// Since when silence counts against a node: the start, or the end of a sleep of the scheduler itself.
    pub listening: Moment,
    /// The latest moment seen.
    pub now: Moment,
    /// When the next tick is due, at the latest.
    pub due: Option<Moment>,
    pub nodes: BTreeMap<NodeId, LiveNode>,
    /// Attempts that have not ended.
    pub attempts: BTreeMap<AttemptId, LiveAttempt>,
    /// Something changed that may let a waiting job go.
    pub look_again: bool,
    /// When waiting jobs were last looked at.
    pub looked: Moment,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct LiveNode {
    pub connected: bool,
    /// The first report of this connection is in.
    pub reported: bool,
    pub last_seen: Moment,
    pub lost: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct LiveAttempt {
    /// What its agent said last; nothing before the first word.
    pub phase: Option<AttemptPhase>,
    /// When its agent last named it, or it was sent to its agent.
    pub heard: Moment,
    pub endpoint: Option<String>,
    pub progress: Option<Progress>,
    /// When its agent was last told to stop it.
    pub stop_sent: Option<Moment>,
}

impl LiveNode {
    pub(super) fn unseen_since(moment: Moment) -> LiveNode {
        LiveNode { connected: false, reported: false, last_seen: moment, lost: false }
    }

    pub(super) fn state(&self, clocks: &Clocks, now: Moment) -> NodeState {
        if self.lost {
            NodeState::Lost
        } else if now >= self.last_seen.after(clocks.suspect_after) {
            NodeState::Suspect
        } else {
            NodeState::Ready
        }
    }

    /// Whether new work is sent there.
    pub(super) fn takes_work(&self, clocks: &Clocks, now: Moment) -> bool {
        self.connected && self.reported && self.state(clocks, now) == NodeState::Ready
    }
}

impl LiveAttempt {
    pub(super) fn sent(now: Moment) -> LiveAttempt {
        LiveAttempt { phase: None, heard: now, endpoint: None, progress: None, stop_sent: None }
    }
}

impl Live {
    /// When the node counts as lost: nobody is before the grace after a start (or a sleep) has passed.
    pub(super) fn lost_at(&self, node: &LiveNode, clocks: &Clocks) -> Moment {
        node.last_seen.after(clocks.lost_after).max(self.listening.after(clocks.grace_after_start))
    }
}
