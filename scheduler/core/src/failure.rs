//! The one closed list of reasons why an attempt ends badly, and what follows from each.

use serde::{Deserialize, Serialize};

/// Why an attempt failed. Every error of every crate maps into this list in one place of `agent/node`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureReason {
    /// The document, the model or an option cannot be used as asked.
    UserError,
    /// A data file is missing, malformed or empty.
    DataError,
    /// Device memory is too small.
    OomGpu,
    /// Host memory is too small.
    OomHost,
    /// The device failed.
    DeviceFault,
    /// The node went away.
    NodeLost,
    /// The runner process ended without leaving a result.
    RunnerLost,
    /// Another job took the place.
    Preempted,
    /// The job ran longer than allowed.
    Deadline,
    /// Store, disk or network.
    Infra,
    /// NaN or infinity in loss or gradient.
    Numerics,
    /// A mistake of ours.
    Internal,
}

/// Whether a new attempt follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryClass {
    /// Trying again gives the same end.
    Never,
    /// The place was at fault, not the job: at most [`RETRIES_PER_HOUR_MAX`].
    Elsewhere,
    /// Worth one more try.
    Once,
}

/// More than this many retries in an hour means that the job, not the place, is at fault.
pub const RETRIES_PER_HOUR_MAX: usize = 5;

impl FailureReason {
    pub const ALL: [FailureReason; 12] = [
        FailureReason::UserError,
        FailureReason::DataError,
        FailureReason::OomGpu,
        FailureReason::OomHost,
        FailureReason::DeviceFault,
        FailureReason::NodeLost,
        FailureReason::RunnerLost,
        FailureReason::Preempted,
        FailureReason::Deadline,
        FailureReason::Infra,
        FailureReason::Numerics,
        FailureReason::Internal,
    ];

    /// The name in reports, logs and `--json`.
    pub fn name(self) -> &'static str {
        match self {
            FailureReason::UserError => "user_error",
            FailureReason::DataError => "data_error",
            FailureReason::OomGpu => "oom_gpu",
            FailureReason::OomHost => "oom_host",
            FailureReason::DeviceFault => "device_fault",
            FailureReason::NodeLost => "node_lost",
            FailureReason::RunnerLost => "runner_lost",
            FailureReason::Preempted => "preempted",
            FailureReason::Deadline => "deadline",
            FailureReason::Infra => "infra",
            FailureReason::Numerics => "numerics",
            FailureReason::Internal => "internal",
        }
    }

    pub fn retry(self) -> RetryClass {
        match self {
            FailureReason::NodeLost
            | FailureReason::RunnerLost
            | FailureReason::Preempted
            | FailureReason::DeviceFault => RetryClass::Elsewhere,
            FailureReason::Infra => RetryClass::Once,
            FailureReason::UserError
            | FailureReason::DataError
            | FailureReason::OomGpu
            | FailureReason::OomHost
            | FailureReason::Deadline
            | FailureReason::Numerics
            | FailureReason::Internal => RetryClass::Never,
        }
    }
}

impl std::fmt::Display for FailureReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
