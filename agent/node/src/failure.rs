//! The one place where every error of a workload becomes a reason of the closed list.
//!
//! The matches name every variant: a new kind of error does not compile before somebody has decided whether trying
//! again elsewhere can help.

use motley_scheduler_core::failure::FailureReason;

use crate::devices::DeviceError;
use crate::models::ModelError;
use crate::serve::ServeError;
use crate::text::{DataError, TextError};
use crate::transfer::TransferError;
use crate::workload::WorkloadError;

/// Longest message of an end report, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 4096;

/// Why an attempt failed, and in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub reason: FailureReason,
    /// At most [`MESSAGE_BYTES_MAX`].
    pub message: String,
}

impl Failure {
    pub fn new(reason: FailureReason, message: impl std::fmt::Display) -> Self {
        let mut message = message.to_string();
        if message.len() > MESSAGE_BYTES_MAX {
            let end = (0..=MESSAGE_BYTES_MAX - 4).rev().find(|&end| message.is_char_boundary(end));
            message.truncate(end.unwrap_or(0));
            message.push_str(" ...");
        }
        Failure { reason, message }
    }
}

/// Reasons of the model store: what is not there at this minute may be there at the next.
pub fn model_reason(error: &ModelError) -> FailureReason {
    match error {
        ModelError::Unreachable { .. }
        | ModelError::Answer { .. }
        | ModelError::Listing { .. }
        | ModelError::Broken { .. }
        | ModelError::Pip { .. }
        | ModelError::Disk { .. }
        | ModelError::NoSource { .. } => FailureReason::Infra,
        ModelError::NotFound { .. }
        | ModelError::Denied { .. }
        | ModelError::WrongHash { .. }
        | ModelError::NoFolder { .. }
        | ModelError::Incomplete { .. }
        | ModelError::Damaged { .. } => FailureReason::UserError,
        // Only asked about when nobody asked to stop.
        ModelError::Stopped => FailureReason::Internal,
    }
}

/// Reasons of tokenizers, prompts and lengths.
pub fn text_reason(error: &TextError) -> FailureReason {
    match error {
        TextError::Unreadable { .. }
        | TextError::Mismatch { .. }
        | TextError::MaxLength { .. }
        | TextError::UnknownPrompt { .. } => FailureReason::UserError,
        TextError::Encode { .. } => FailureReason::DataError,
    }
}

/// Reasons of data files.
pub fn data_reason(error: &DataError) -> FailureReason {
    match error {
        DataError::Read { .. } => FailureReason::Infra,
        DataError::Open { .. }
        | DataError::NotUtf8 { .. }
        | DataError::LineTooLong { .. }
        | DataError::NotJson { .. }
        | DataError::MissingField { .. }
        | DataError::WrongType { .. }
        | DataError::EmptyText { .. }
        | DataError::Unusable { .. }
        | DataError::NoRows { .. } => FailureReason::DataError,
    }
}

/// Reasons of the HTTP interface.
pub fn serve_reason(error: &ServeError) -> FailureReason {
    match error {
        ServeError::PortInUse { .. } | ServeError::Bind { .. } | ServeError::Keys { .. } => {
            FailureReason::UserError
        }
        ServeError::Socket(_) => FailureReason::Infra,
        ServeError::ComputeThread => FailureReason::Internal,
    }
}

/// Reasons of transfers to and from the scheduler.
pub(crate) fn transfer_reason(error: &TransferError) -> FailureReason {
    match error {
        TransferError::Lost(_)
        | TransferError::Refused { .. }
        | TransferError::Disk { .. }
        | TransferError::DiskFull { .. }
        | TransferError::Gone { .. } => FailureReason::Infra,
        TransferError::Manifest { .. } | TransferError::UnsafePath { .. } => FailureReason::DataError,
    }
}

/// Reasons of workloads. A stopped one has none: the shell looks at the stop flag first.
pub fn workload_reason(error: &WorkloadError) -> FailureReason {
    match error {
        WorkloadError::Model(error) => model_reason(error),
        WorkloadError::Text(error) => text_reason(error),
        WorkloadError::Data(error) => data_reason(error),
        WorkloadError::Serve(error) => serve_reason(error),
        WorkloadError::Compute(error) => compute_reason(error),
        WorkloadError::Device(error) | WorkloadError::Choice(DeviceError::Device(error)) => {
            device_reason(error)
        }
        WorkloadError::Choice(DeviceError::Absent { .. }) => FailureReason::UserError,
        WorkloadError::Adapter(_) | WorkloadError::Resume(_) | WorkloadError::Unusable { .. } => {
            FailureReason::UserError
        }
        WorkloadError::NonFiniteVector { .. } => FailureReason::Numerics,
        WorkloadError::Disk(_) | WorkloadError::Checkpoint { .. } => FailureReason::Infra,
        WorkloadError::Memory { device, .. } | WorkloadError::Exhausted { device, .. } => {
            out_of_memory(device)
        }
        WorkloadError::Stopped => FailureReason::Internal,
    }
}

/// As [`workload_reason`] where no other node can take the job and its user waits: the store has tried all it could
/// to have the model, and would try the same again.
pub(crate) fn reason_alone(error: &WorkloadError) -> FailureReason {
    match error {
        WorkloadError::Model(error) if error.is_absence() || matches!(error, ModelError::NoSource { .. }) => {
            FailureReason::UserError
        }
        error => workload_reason(error),
    }
}

/// Reasons of models that compute.
fn compute_reason(error: &motley_ops::Error) -> FailureReason {
    use motley_ops::Error;
    match error {
        Error::Numerics { .. } | Error::NonFiniteEmbedding { .. } => FailureReason::Numerics,
        Error::Backend(error) => device_reason(error),
        Error::Row { .. } => FailureReason::DataError,
        Error::Malformed { .. }
        | Error::UnsupportedModel { .. }
        | Error::UnsupportedSetting { .. }
        | Error::ModelSize { .. }
        | Error::TooManyElements { .. }
        | Error::WeightFile(_)
        | Error::MissingTensor { .. }
        | Error::TensorShape { .. }
        | Error::TensorDtype { .. }
        | Error::NonFiniteWeight { .. }
        | Error::UnknownTarget { .. }
        | Error::AdapterSetting { .. }
        | Error::AdapterTensor { .. }
        | Error::TokenOutOfRange { .. }
        | Error::Setting { .. } => FailureReason::UserError,
        Error::NoAdapter
        | Error::TextLength { .. }
        | Error::NoRows
        | Error::State { .. }
        | Error::EmbeddingCount { .. } => FailureReason::Internal,
    }
}

/// Reasons of devices.
fn device_reason(error: &motley_backends::Error) -> FailureReason {
    use motley_backends::Error;
    match error {
        Error::OutOfMemory { device, .. } => out_of_memory(device),
        Error::UnknownBackend { .. }
        | Error::NonFinite { .. }
        | Error::Precision { .. }
        | Error::TooManyRounds { .. }
        | Error::Unavailable { .. } => FailureReason::UserError,
        Error::BindingTooLarge { .. } => FailureReason::OomGpu,
        Error::DeviceFailed { .. } => FailureReason::DeviceFault,
        Error::Threads { .. } => FailureReason::Infra,
        Error::OutOfBounds { .. }
        | Error::Misaligned { .. }
        | Error::Launch { .. }
        | Error::Overlap { .. }
        | Error::Busy { .. }
        | Error::Foreign { .. }
        | Error::Recorded { .. }
        | Error::Weight { .. } => FailureReason::Internal,
    }
}

/// The memory of `cpu:0` is the host's.
fn out_of_memory(device: &str) -> FailureReason {
    if device.starts_with("cpu:") { FailureReason::OomHost } else { FailureReason::OomGpu }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_of_devices_have_their_own_reasons() {
        use motley_backends::Error;
        let short = |device: &str| Error::OutOfMemory {
            device: device.into(),
            category: "activations",
            requested: 2,
            free: 1,
        };
        let lost = Error::DeviceFailed { device: "cuda:0".into(), call: "product", reason: "lost".into() };
        for (error, reason) in [
            (short("cpu:0"), FailureReason::OomHost),
            (short("cuda:0"), FailureReason::OomGpu),
            (short("wgpu:1"), FailureReason::OomGpu),
            (lost, FailureReason::DeviceFault),
            (Error::UnknownBackend { name: "rocm".into() }, FailureReason::UserError),
        ] {
            assert_eq!(workload_reason(&motley_ops::Error::from(error).into()), reason);
        }
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let failure = Failure::new(FailureReason::Internal, "é".repeat(5000));
        assert!(failure.message.len() <= MESSAGE_BYTES_MAX);
        assert!(failure.message.ends_with("é ..."));
        assert_eq!(Failure::new(FailureReason::Infra, "short").message, "short");
    }
}
