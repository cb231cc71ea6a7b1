//! Who is connected, and what is said to them. At most one connection a node: the newest.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use motley_scheduler_core::id::NodeId;
use motley_scheduler_core::wire::agent::ToAgent;
use motley_scheduler_link::{CloseCode, Link};
use tokio::sync::mpsc;

/// Messages that wait for an agent: it reads each within milliseconds, so this many mean that it no longer does.
pub(crate) const OUTBOX: usize = 1024;

/// Tells the connections of one node apart: an old one that ends late must not end the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Connection(pub u64);

#[derive(Debug)]
struct Line {
    connection: Connection,
    link: Link,
    outbox: mpsc::Sender<ToAgent>,
}

#[derive(Debug, Default)]
pub(crate) struct Agents {
    lines: Mutex<BTreeMap<NodeId, Line>>,
}

impl Agents {
    /// Takes a connection for its node's; true when it replaces an older one, which is closed.
    pub(crate) fn add(
        &self,
        node: NodeId,
        connection: Connection,
        link: Link,
        outbox: mpsc::Sender<ToAgent>,
    ) -> bool {
        let old = self.lines().insert(node, Line { connection, link, outbox });
        if let Some(old) = &old {
            old.link.close(CloseCode::Done, "the node has connected anew");
        }
        old.is_some()
    }

    /// Forgets a connection; false when a newer one has taken its place.
    pub(crate) fn remove(&self, node: NodeId, connection: Connection) -> bool {
        let mut lines = self.lines();
        let is_current = lines.get(&node).is_some_and(|line| line.connection == connection);
        if is_current {
            lines.remove(&node);
        }
        is_current
    }

    pub(crate) fn is_current(&self, node: NodeId, connection: Connection) -> bool {
        self.lines().get(&node).is_some_and(|line| line.connection == connection)
    }

    /// Queues a message. An agent that is away needs none: it is told everything when it reports again.
    pub(crate) fn send(&self, node: NodeId, message: ToAgent) {
        if let Some(line) = self.lines().get(&node)
            && line.outbox.try_send(message).is_err()
        {
            tracing::warn!(%node, "agent closed: it does not read what it is told");
            line.link.close(CloseCode::Failed, "the agent does not read what it is told");
        }
    }

    /// Closes a node's connection; its end is then noticed like any other.
    pub(crate) fn disconnect(&self, node: NodeId, reason: &str) {
        if let Some(line) = self.lines().get(&node) {
            line.link.close(CloseCode::Denied, reason);
        }
    }

    /// Closes every connection: agents dial again and report everything they know.
    pub(crate) fn disconnect_all(&self, reason: &str) {
        for line in self.lines().values() {
            line.link.close(CloseCode::Failed, reason);
        }
    }

    fn lines(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, Line>> {
        // Every change of the map is one call; a panic elsewhere leaves it whole.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
