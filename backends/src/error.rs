//! What can go wrong on a device.

/// A device that cannot do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error(
        "{category} need {} MiB, {} MiB are free on the device\nhint: lower [train] token_budget or batch_size, or give the job more memory",
        requested.div_ceil(1 << 20), free >> 20
    )]
    OutOfMemory { requested: u64, free: u64, category: &'static str },
    #[error("{entry}: {message}")]
    Launch { entry: &'static str, message: String },
    #[error("{what} reaches to byte {end} of a buffer of {bytes} bytes")]
    OutOfBounds { what: &'static str, end: usize, bytes: usize },
    #[error("a buffer or weight of another backend was passed to {backend}")]
    Foreign { backend: &'static str },
    #[error("a weight of shape {shape:?} has {bytes} bytes, expected {expected}")]
    WeightShape { shape: [usize; 2], bytes: usize, expected: usize },
    #[error("{threads} worker threads cannot be started: {message}\nhint: lower [resources] threads")]
    Threads { threads: usize, message: String },
    #[error("backend `{name}` is not in this build\nhint: use backend = [\"cpu\"]")]
    NoBackend { name: &'static str },
}
