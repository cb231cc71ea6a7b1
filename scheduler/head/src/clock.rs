//! The scheduler's clock: milliseconds since the Unix epoch that never decrease, restarts included.
//!
//! It starts at the machine's time or at the stored moment, whichever is later, and from there follows the machine's
//! monotonic clock: a machine whose time is set back makes no lease immortal and no history run backwards.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use motley_scheduler_core::unit::{Moment, Span};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    base: Moment,
    started: Instant,
}

impl Clock {
    pub(crate) fn start(stored: Moment, machine: SystemTime, started: Instant) -> Clock {
        let machine = machine.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let machine = Moment(u64::try_from(machine).unwrap_or(u64::MAX));
        let after_stored = Moment(stored.0.saturating_add(1));
        Clock { base: machine.max(after_stored), started }
    }

    pub(crate) fn now(&self) -> Moment {
        let milliseconds = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.base.after(Span { milliseconds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn clock_goes_on_from_the_later_of_machine_and_store() {
        let machine = UNIX_EPOCH + Duration::from_millis(5000);
        assert_eq!(Clock::start(Moment(7000), machine, Instant::now()).base, Moment(7001));
        assert_eq!(Clock::start(Moment(3000), machine, Instant::now()).base, Moment(5000));
        let before_epoch = UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(Clock::start(Moment(9), before_epoch, Instant::now()).base, Moment(10));
        let clock = Clock::start(Moment(0), machine, Instant::now());
        let mut last = clock.now();
        for _ in 0..1000 {
            let now = clock.now();
            assert!(now >= last);
            last = now;
        }
    }
}
