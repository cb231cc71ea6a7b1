//! How a runner is stopped: asked, told, killed.
//!
//! ```text
//! at once          stop over control.sock; SIGTERM when nobody answers there
//! half of grace    SIGTERM
//! end of grace     SIGKILL
//! ```

use std::time::{Duration, Instant};

use motley_scheduler_core::unit::Span;
use nix::sys::signal::Signal;

use super::folder::AttemptFolder;
use super::process::RunnerProcess;
use crate::runner::control::{ControlCommand, tell};
use crate::runner::lease::duration;

/// A runner gets at least this long, whatever the order says: it has to write `result.json`.
const GRACE_MIN: Duration = Duration::from_millis(500);

/// A stop under way.
#[derive(Debug)]
pub(crate) struct Stopping {
    since: Instant,
    grace: Duration,
    step: Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    None,
    Asked,
    Terminated,
    Killed,
}

impl Stopping {
    pub(crate) fn new(grace: Span) -> Self {
        Stopping { since: Instant::now(), grace: duration(grace).max(GRACE_MIN), step: Step::None }
    }

    /// Whether this agent has killed the runner.
    pub(crate) fn has_killed(&self) -> bool {
        self.step == Step::Killed
    }

    /// Takes the next step when it is due. Called while the runner is alive.
    pub(crate) fn escalate(&mut self, folder: &AttemptFolder, process: &RunnerProcess) {
        let elapsed = self.since.elapsed();
        let due = if elapsed >= self.grace {
            Step::Killed
        } else if elapsed >= self.grace / 2 {
            Step::Terminated
        } else {
            Step::Asked
        };
        if due <= self.step {
            return;
        }
        self.step = due;
        tracing::info!(folder = %folder.path.display(), step = ?due, "stopping runner");
        match due {
            Step::None => {}
            // Answered within a millisecond by a thread of its own, or refused; a second at worst.
            Step::Asked => {
                if tell(&folder.path, ControlCommand::Stop).is_err() {
                    process.signal(Signal::SIGTERM);
                }
            }
            Step::Terminated => process.signal(Signal::SIGTERM),
            Step::Killed => process.signal(Signal::SIGKILL),
        }
    }
}
