//! The agent's way to the scheduler, as the agent needs it: a stream of messages, and blobs by content.
//!
//! `quic` is the real one. Tests of the agent bring one of their own.

pub(crate) mod quic;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use motley_scheduler_core::id::ContentHash;
use motley_scheduler_core::wire::agent::{FromAgent, ToAgent};
use tokio::sync::mpsc;

/// What a method of a trait object returns.
pub(crate) type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, UplinkError>> + Send + 'a>>;

/// Messages that wait in either direction. The agent never waits for room: what finds none is said again later.
pub(crate) const QUEUE_MESSAGES: usize = 256;

/// Dials the scheduler.
pub(crate) trait Uplink: Send + Sync {
    fn connect(&self) -> Answer<'_, Connection>;

    /// When to ask for a new certificate.
    fn renew_at(&self) -> Option<SystemTime>;

    /// A certificate request for a fresh key, which is kept until the answer.
    fn begin_renewal(&self) -> Result<Vec<u8>, UplinkError>;

    /// The certificate for that key: used from the next connection on.
    fn finish_renewal(&self, certificate: &[u8]) -> Result<(), UplinkError>;
}

/// One connection. Over when `inbox` ends.
pub(crate) struct Connection {
    pub(crate) outbox: mpsc::Sender<FromAgent>,
    pub(crate) inbox: mpsc::Receiver<ToAgent>,
    pub(crate) blobs: Arc<dyn BlobStore>,
    /// The protocol version that both ends speak.
    pub(crate) version: u16,
}

/// Blobs at the scheduler.
pub(crate) trait BlobStore: Send + Sync {
    /// Which of these are not stored there.
    fn missing(&self, hashes: Vec<ContentHash>) -> Answer<'_, Vec<ContentHash>>;

    /// Stores a file there.
    fn put(&self, blob: LocalBlob) -> Answer<'_, ()>;

    /// Fetches a blob into `path`: whole and checked, or not at all.
    fn get<'a>(&'a self, hash: ContentHash, path: &'a Path) -> Answer<'a, ()>;
}

/// A file whose contents are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LocalBlob {
    pub(crate) hash: ContentHash,
    pub(crate) size: u64,
    pub(crate) path: PathBuf,
}

/// Why the scheduler did not do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UplinkError {
    /// The connection is gone, or could not be made: worth trying again.
    #[error("{0}")]
    Lost(String),
    /// The scheduler, or a file here, says no.
    #[error("{0}")]
    Refused(String),
}
