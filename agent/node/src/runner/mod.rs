//! The runner: one process for one attempt, around a workload.
//!
//! ```text
//! context   what a workload is given
//! report    what a workload says
//! events    the lines of events.jsonl
//! ```

pub mod context;
pub mod events;
pub mod report;

pub use context::{Context, Embedded, Folders, RunnerSpec, StopFlag};
pub use report::Reporter;
