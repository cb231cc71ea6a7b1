//! The lease as the runner sees it: past its end it computes on for a while, then it stops.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use motley_scheduler_core::unit::Span;

/// When the lease ends, and how long to go on after that.
#[derive(Debug)]
pub(crate) struct Lease {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    until: Instant,
    keep_running: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeaseState {
    Held,
    /// Past its end: computing goes on, for this much longer.
    Lapsed {
        left: Duration,
    },
    /// Time to stop.
    Over,
}

impl Lease {
    pub(crate) fn new(now: Instant, lease: Span, keep_running: Span) -> Self {
        let state = State { until: now + duration(lease), keep_running: duration(keep_running) };
        Lease { state: Mutex::new(state) }
    }

    pub(crate) fn renew(&self, now: Instant, lease: Span, keep_running: Span) {
        let mut state = self.lock();
        state.until = state.until.max(now + duration(lease));
        state.keep_running = duration(keep_running);
    }

    pub(crate) fn at(&self, now: Instant) -> LeaseState {
        let state = self.lock();
        let end = state.until + state.keep_running;
        if now < state.until {
            LeaseState::Held
        } else if now < end {
            LeaseState::Lapsed { left: end - now }
        } else {
            LeaseState::Over
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Longest span taken seriously, so that adding it to an instant cannot overflow: a year.
const SPAN_MAX_MS: u64 = 366 * 24 * 3600 * 1000;

pub(crate) fn duration(span: Span) -> Duration {
    Duration::from_millis(span.milliseconds.min(SPAN_MAX_MS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn past_its_lease_a_runner_goes_on_for_a_while_and_a_renewal_brings_it_back() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let lease = Lease::new(start, Span::from_seconds(30), Span::from_seconds(600));
        assert_eq!(lease.at(start + 29 * second), LeaseState::Held);
        assert_eq!(lease.at(start + 31 * second), LeaseState::Lapsed { left: 599 * second });
        assert_eq!(lease.at(start + 630 * second), LeaseState::Over);
        lease.renew(start + 100 * second, Span::from_seconds(30), Span::from_seconds(60));
        assert_eq!(lease.at(start + 120 * second), LeaseState::Held);
        assert_eq!(lease.at(start + 190 * second), LeaseState::Over);
        lease.renew(start, Span { milliseconds: u64::MAX }, Span { milliseconds: u64::MAX });
        assert_eq!(lease.at(start + 190 * second), LeaseState::Held);
    }
}
