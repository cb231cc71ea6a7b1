//! What jobs do, and the commands that do the same without a job.
//!
//! ```text
//! train, evaluate, crate::serve   jobs, by the document's kind
//! embed, export, bench, compare   for `ctl`, without scheduler or runner
//!
//! job, model, identity            the device; a model ready to embed; which base an adapter belongs to
//! rows, order, tasks              training rows, their order; evaluation data
//! score, overlap                  figures, and what they are without a model
//! results, report                 figures their shape in report.json, the report
//! checkpoint, log, tensorboard    what a training leaves while it runs
//! vectors, dialect, disk          files: vectors, model folders; whole or absent
//! plan, lengths                   how much memory a job needs; how long its texts are
//! program                         which program made a report
//! ```

pub mod bench;
mod checkpoint;
pub mod compare;
mod dialect;
mod disk;
pub mod embed;
mod error;
pub(crate) mod evaluate;
pub mod export;
pub mod identity;
pub(crate) mod job;
mod lengths;
mod log;
pub(crate) mod model;
mod order;
mod overlap;
pub(crate) mod plan;
pub mod program;
pub mod report;
pub mod results;
mod rows;
mod score;
mod tasks;
mod tensorboard;
#[cfg(test)]
mod tests;
mod train;
mod vectors;

use motley_scheduler_core::document::Workload;

use crate::runner::Context;

pub use bench::{BenchLine, BenchOptions, KernelLine, bench_encode, bench_kernels, bench_train};
pub use checkpoint::ResumeError;
pub use compare::{CompareError, Comparison, compare};
pub use disk::DiskError;
pub use embed::{EmbedOptions, EmbedProgress, EmbedSummary, Embedding};
pub use error::WorkloadError;
pub use export::{ExportOptions, ExportSummary, export_merged};
pub use identity::{AdapterError, AdapterIdentity};
pub use plan::plan_memory;

/// Does what the document says.
///
/// # Errors
/// Whatever keeps it from being done; [`WorkloadError::Stopped`] when the stop flag ended it.
pub fn run(context: &Context) -> Result<(), WorkloadError> {
    match &context.document.workload {
        Workload::Train(train) => train::run(context, train),
        Workload::Evaluate(evaluate) => evaluate::run(context, evaluate),
        Workload::Serve(serve) => crate::serve::run(context, serve),
    }
}
