//! Attempts as the agent sees them: one task for each, from the assignment to the recorded end.
//!
//! ```text
//! preparing ──files laid out──▶ running ──runner gone──▶ ending ──all stored──▶ reported ──recorded──▶ over
//!     └──────────── stop, or cannot be prepared ────────────▶┘
//! ```
//!
//! A failing job never ends the agent: whatever goes wrong here becomes an end report.

pub(crate) mod driver;
pub(crate) mod folder;
pub(crate) mod process;
mod publish;
mod stop;
mod store;
mod tail;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use motley_scheduler_core::unit::Span;
use motley_scheduler_core::wire::agent::{AttemptReport, FromAgent};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use crate::uplink::BlobStore;

/// The connection of this moment, seen by every attempt.
#[derive(Clone)]
pub(crate) struct Session {
    /// Grows with every connection.
    pub(crate) number: u64,
    pub(crate) outbox: mpsc::Sender<FromAgent>,
    pub(crate) blobs: Arc<dyn BlobStore>,
}

pub(crate) type Sessions = watch::Receiver<Option<Session>>;

/// What the scheduler wants of an attempt. Plain state, not a queue: only the newest wish counts.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Orders {
    pub(crate) lease: Option<Renewal>,
    /// With the time that the attempt may take.
    pub(crate) stop: Option<Span>,
    /// Another attempt has taken its place, or it is of no interest any more: stop, and publish nothing.
    pub(crate) stale: bool,
    pub(crate) end_recorded: bool,
    pub(crate) log_stored: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Renewal {
    pub(crate) at: Instant,
    pub(crate) lease: Span,
    pub(crate) keep_running: Span,
}

impl Renewal {
    /// Time left of the lease.
    pub(crate) fn left(&self, now: Instant) -> Duration {
        (self.at + crate::runner::lease::duration(self.lease)).saturating_duration_since(now)
    }
}

/// What the agent and the task of an attempt share.
#[derive(Debug)]
pub(crate) struct Shared {
    orders: Mutex<Orders>,
    report: Mutex<AttemptReport>,
    wake: Notify,
}

/// The agent's end of an attempt.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) shared: Arc<Shared>,
    /// Ends when the attempt is over and its folder gone.
    pub(crate) task: JoinHandle<()>,
}

impl Shared {
    pub(crate) fn new(report: AttemptReport) -> Self {
        Shared { orders: Mutex::default(), report: Mutex::new(report), wake: Notify::new() }
    }

    pub(crate) fn report(&self) -> AttemptReport {
        self.lock_report().clone()
    }

    /// Gives an order and wakes the task.
    pub(crate) fn order(&self, change: impl FnOnce(&mut Orders)) {
        change(&mut self.orders.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.notify_one();
    }

    fn take_orders(&self) -> Orders {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = *orders;
        orders.log_stored = None;
        taken
    }

    fn lock_report(&self) -> MutexGuard<'_, AttemptReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
