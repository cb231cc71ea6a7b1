//! The runner: one process for one attempt, around a workload.
//!
//! ```text
//! context   what a workload is given; the attempt folder
//! report    what a workload says
//! events    the lines of events.jsonl
//! shell     from spec.json to result.json
//! control   what the agent tells a runner
//! lease     when to stop without being told
//! process   who a runner is
//! result    how it ended
//! files     JSON files that are whole or absent
//! ```

pub mod context;
pub(crate) mod control;
pub mod events;
pub(crate) mod files;
pub(crate) mod lease;
pub mod process;
pub mod report;
pub(crate) mod result;
pub mod shell;

use std::path::Path;
use std::process::ExitCode;

use motley_scheduler_core::document::{Document, Workload};
use motley_scheduler_core::failure::FailureReason;

use crate::failure::{Failure, reason_alone, workload_reason};
use crate::workload::{self, WorkloadError};
use shell::{Finish, Shell};

pub use context::{Context, Embedded, Folders, RunnerSpec, StopFlag};
pub use report::Reporter;

/// The program of a runner: does the attempt of that folder and leaves `result.json` there.
pub fn runner_main(attempt_folder: &Path) -> ExitCode {
    shell::run(attempt_folder, work)
}

fn work(shell: Shell) -> Result<Finish, Failure> {
    let document = Document::parse(&shell.spec.assignment.document)
        .map_err(|error| Failure::new(FailureReason::UserError, error))?;
    let serves = matches!(document.workload, Workload::Serve(_));
    let Shell { spec, folders, reporter, stop } = shell;
    let context = Context { spec, document, folders, reporter, stop };
    match workload::run(&context) {
        // A server that drained ended because it was asked to; anything else that returns has done all it had to do.
        Ok(()) if serves && context.stop.is_set() => Ok(Finish::Stopped),
        Ok(()) => Ok(Finish::Done),
        Err(WorkloadError::Stopped) => Ok(Finish::Stopped),
        Err(error) => {
            let alone = context.spec.embedded.is_some();
            Err(Failure::new(if alone { reason_alone(&error) } else { workload_reason(&error) }, error))
        }
    }
}
