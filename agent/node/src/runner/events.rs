//! Lines of `events.jsonl`: what a runner tells its agent while it runs.

use motley_scheduler_core::wire::agent::{AttemptPhase, Progress};
use serde::{Deserialize, Serialize};

/// One line. Unknown kinds are skipped by the reader, so that a newer runner does not stop an older agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum RunnerEvent {
    Phase {
        phase: AttemptPhase,
    },
    Progress {
        progress: Progress,
    },
    /// `checkpoints/step-<step>` is complete.
    Checkpoint {
        step: u64,
    },
    /// Where a serving job listens.
    Endpoint {
        endpoint: String,
    },
}
