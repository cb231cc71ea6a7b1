//! What a workload is given: its facts, its folders, a way to report, and the wish that it stop.
//!
//! ```text
//! <attempt folder>/
//!   spec.json              RunnerSpec
//!   pid.json               who runs it: pid, start time, boot, nonce
//!   runner.lock            held by the runner as long as it lives
//!   output.log             stdout and stderr of the runner
//!   events.jsonl           one RunnerEvent a line, appended
//!   control.sock           agent -> runner: lease renewals, stop
//!   input/                 uploaded files, at FileEntry.path
//!   inputs/job-<id>/       outputs of other jobs that the document names
//!   resume/                the checkpoint to continue from, if there is one
//!   checkpoints/step-<n>/  complete ones only: written as .partial-* and renamed
//!   output/                what the job leaves behind
//!   result.json            how it ended; renamed into place, the only source of the end
//!   agent.json             what the agent has already stored and reported
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use motley_scheduler_core::document::Document;
use motley_scheduler_core::unit::Span;
use motley_scheduler_core::wire::agent::Assignment;
use serde::{Deserialize, Serialize};

pub use super::report::Reporter;
use crate::settings::NodeSettings;

/// Everything a workload may know.
#[derive(Debug)]
pub struct Context {
    pub spec: RunnerSpec,
    pub document: Document,
    pub folders: Folders,
    pub reporter: Reporter,
    pub stop: StopFlag,
}

/// `spec.json`: everything the agent knows when it starts a runner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunnerSpec {
    /// As the scheduler sent it: attempt, epoch, document text, device, backend, memory, resume.
    pub assignment: Assignment,
    /// Name of the node, for reports.
    pub node: String,
    /// Which of the backend's devices the leased one is.
    #[serde(default)]
    pub device_index: u32,
    /// Worker threads of the cpu backend at most; the document may ask for fewer.
    pub threads: u32,
    /// How long the runner goes on past its lease.
    pub keep_running: Span,
    pub settings: NodeSettings,
    /// Tells this runner from any other process that has its pid one day.
    pub nonce: String,
    /// Set when runner and scheduler end with the process that started them.
    pub embedded: Option<Embedded>,
}

/// The process that a runner of the embedded mode ends with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Embedded {
    pub parent: u32,
    /// Removed when the parent is gone.
    pub root: PathBuf,
}

/// Where things lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folders {
    /// Uploaded files at [`motley_scheduler_core::document::FileReference::input_path`].
    pub input: PathBuf,
    /// One `job-<id>` folder for each job that the document names.
    pub inputs: PathBuf,
    /// The checkpoint to continue from.
    pub resume: Option<PathBuf>,
    /// `step-<n>` folders, written as `.partial-*` and renamed.
    pub checkpoints: PathBuf,
    /// What the job leaves behind.
    pub output: PathBuf,
    /// Shared by all jobs of the node.
    pub cache: PathBuf,
}

/// Set once, when the workload has to end: it writes what it has and returns.
#[derive(Debug, Clone, Default)]
pub struct StopFlag {
    flag: Arc<AtomicBool>,
}

impl Folders {
    /// The folders of an attempt.
    pub fn new(attempt: &Path, cache: &Path) -> Self {
        let resume = attempt.join("resume");
        Folders {
            input: attempt.join("input"),
            inputs: attempt.join("inputs"),
            resume: resume.is_dir().then_some(resume),
            checkpoints: attempt.join("checkpoints"),
            output: attempt.join("output"),
            cache: cache.to_path_buf(),
        }
    }
}

impl StopFlag {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn is_set(&self) -> bool {
        self.flag.load(Ordering::SeqCst)
    }

    pub fn set(&self) {
        self.flag.store(true, Ordering::SeqCst);
    }
}
