//! Why a workload ended without a result.

use motley_scheduler_core::unit::Bytes;

use super::checkpoint::ResumeError;
use super::disk::DiskError;
use super::identity::AdapterError;
use crate::devices::DeviceError;
use crate::models::ModelError;
use crate::serve::ServeError;
use crate::text::{DataError, Place, TextError};

/// Any error of train, evaluate, serve, embed, export and bench. `failure` maps each to a reason.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error(transparent)]
    Resume(#[from] ResumeError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Compute(#[from] motley_ops::Error),
    #[error(transparent)]
    Device(#[from] motley_backends::Error),
    #[error(transparent)]
    Choice(#[from] DeviceError),
    #[error(
        "{place}: the vector holds NaN or infinity\n\
         hint: the model's weights are damaged or too large; take another copy of the model"
    )]
    NonFiniteVector { place: Place },
    /// With the newest checkpoint that is whole.
    #[error("checkpoint of step {step}: {source}{}", kept(*newest))]
    Checkpoint { step: u64, newest: Option<u64>, source: DiskError },
    #[error(
        "the job needs {needed} on {device}, it has {allowed}\n\
         hint: ask for more with [resources] memory, or {remedy}"
    )]
    Memory { device: String, needed: Bytes, allowed: Bytes, remedy: String },
    /// In the middle of a job that was planned to fit.
    #[error(
        "{source}\nthe plan for the whole job was {planned} on {device}, {held} were held before: something else uses \
         the device, or the plan is too small\nhint: {remedy}"
    )]
    Exhausted { device: String, planned: Bytes, held: Bytes, remedy: String, source: Box<WorkloadError> },
    #[error("{what}\nhint: {hint}")]
    Unusable { what: String, hint: &'static str },
    /// The stop flag was set; what there was has been kept.
    #[error("stopped")]
    Stopped,
}

impl WorkloadError {
    /// Gives a text that is named by its place the place it has for the caller.
    pub(super) fn renumbered(self, place: impl Fn(usize) -> usize) -> Self {
        match self {
            WorkloadError::Compute(motley_ops::Error::NonFiniteEmbedding { index }) => {
                motley_ops::Error::NonFiniteEmbedding { index: place(index) }.into()
            }
            other => other,
        }
    }
}

fn kept(newest: Option<u64>) -> String {
    match newest {
        Some(step) => format!("\nthe last good checkpoint is that of step {step}"),
        None => "\nno earlier checkpoint was kept".to_owned(),
    }
}
