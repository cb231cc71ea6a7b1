//! Storing what an attempt leaves behind: one folder at a time, tried again a bounded number of times.

use std::time::{Duration, Instant};

use motley_scheduler_core::artifact::{ArtifactKind, ArtifactRef};
use tokio::task::JoinHandle;

use super::Session;
use crate::transfer::TransferError;
use crate::transfer::upload::{Upload, upload};

/// Tries at one thing while the connection stands. A lost connection is nobody's failure and does not count.
const TRIES_MAX: u32 = 5;

/// Between the first and the second try; doubled after every further one.
const WAIT_FIRST: Duration = Duration::from_secs(1);

/// When to try again, and when no more.
#[derive(Debug)]
pub(crate) struct Retry {
    failures: u32,
    not_before: Option<Instant>,
}

/// The upload under way.
#[derive(Debug)]
pub(crate) struct Storing {
    task: Option<(ArtifactKind, JoinHandle<StoreResult>)>,
    retry: Retry,
}

type StoreResult = Result<Option<ArtifactRef>, TransferError>;

impl Retry {
    pub(crate) fn new() -> Self {
        Retry { failures: 0, not_before: None }
    }

    pub(crate) fn is_due(&self) -> bool {
        self.not_before.is_none_or(|at| Instant::now() >= at)
    }

    /// Notes a failure; gives the error back when it is the last.
    pub(crate) fn failed(&mut self, error: TransferError) -> Option<TransferError> {
        let again = match error {
            TransferError::Lost(_) => WAIT_FIRST,
            TransferError::Refused { .. } | TransferError::Disk { .. } if self.failures + 1 < TRIES_MAX => {
                self.failures += 1;
                WAIT_FIRST * 2u32.pow(self.failures - 1)
            }
            _ => {
                *self = Retry::new();
                return Some(error);
            }
        };
        tracing::warn!(%error, failures = self.failures, "transfer failed, trying again");
        self.not_before = Some(Instant::now() + again);
        None
    }
}

impl Storing {
    pub(crate) fn new() -> Self {
        Storing { task: None, retry: Retry::new() }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.task.is_none()
    }

    /// Begins to store a folder, if nothing is under way and the last failure is long enough ago.
    pub(crate) fn start(&mut self, session: &Session, what: Upload) {
        if self.task.is_some() || !self.retry.is_due() {
            return;
        }
        let blobs = session.blobs.clone();
        let kind = what.kind;
        self.task = Some((kind, tokio::spawn(async move { upload(what, &*blobs).await })));
    }

    /// What has been decided since the last call: stored, empty, or given up.
    pub(crate) async fn finished(&mut self) -> Option<(ArtifactKind, StoreResult)> {
        if !self.task.as_ref()?.1.is_finished() {
            return None;
        }
        let (kind, task) = self.task.take()?;
        let result = task.await.unwrap_or_else(|error| Err(TransferError::Lost(error.to_string())));
        match result {
            Ok(stored) => {
                self.retry = Retry::new();
                Some((kind, Ok(stored)))
            }
            Err(error) => self.retry.failed(error).map(|error| (kind, Err(error))),
        }
    }
}

impl Drop for Storing {
    fn drop(&mut self) {
        if let Some((_, task)) = &self.task {
            task.abort();
        }
    }
}
