//! How a runner is stopped: asked, told, killed.
//!
//! ```text
//! at once          stop over control.sock; SIGTERM when nobody answers there
//! half of grace    SIGTERM
//! end of grace     SIGKILL
//! ```

use std::time::{Duration, Instant};

use motley_scheduler_core::document::{Document, Workload};
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
    /// `ordered` is what the scheduler, which knows no documents, allows every job. A server is let finish its drain.
    pub(crate) fn of_job(document: &str, ordered: Span) -> Self {
        let needed = match Document::parse(document).map(|document| document.workload) {
            Ok(Workload::Serve(serve)) => crate::serve::stop_grace(&serve),
            _ => ordered,
        };
        Self::new(ordered.max(needed))
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    const SERVE: &str = "version = 1\nkind = \"serve\"\nname = \"s\"\n[model]\nsource = \"a/b\"\n";

    #[test]
    fn a_server_is_given_its_drain_and_time_to_end() {
        let grace = |document: &str, ordered| Stopping::of_job(document, Span::from_seconds(ordered)).grace;
        let drain = |text: &str| format!("{SERVE}[batch]\ndrain = \"{text}\"\n");
        let seconds = Duration::from_secs;
        assert!(grace(SERVE, 30) > seconds(32), "the default drain and its linger are more than any order");
        assert!(grace(&drain("10m"), 30) > seconds(602));
        assert_eq!(grace(&drain("1s"), 30), seconds(30));
        assert_eq!(grace("nonsense", 30), seconds(30));
    }
}
