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

pub use context::{Context, Embedded, Folders, RunnerSpec, StopFlag};
pub use report::Reporter;
