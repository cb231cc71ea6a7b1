//! The scheduler daemon: it feeds events to the deciding half, commits its changes, and performs its actions.
//! Decides nothing itself.
//!
//! ```text
//!  joins ┐                     ┌ store     journal of changes: SQLite, one writer
//! agents ┼→ engine ── cluster ─┼ agents    what is said to them
//! clients┘  (one task)         ├ logs      a file per attempt
//!  bulk  ──────────────────────┴ blobs     files by content
//! ```
//!
//! State folder: `lock`, `authority/`, `admin/`, `journal.sqlite`, `blobs/`, `logs/`.

mod error;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use motley_scheduler_core::cluster::Clocks;
use motley_scheduler_core::id::ContentHash;

pub use error::HeadError;

/// How to run a scheduler.
#[derive(Debug, Clone)]
pub struct HeadConfig {
    /// Everything that has to survive; made if missing.
    pub state: PathBuf,
    /// Port 0 picks a free one.
    pub listen: SocketAddr,
    /// The address that nodes and users of other machines dial, where it differs from `listen`.
    pub advertise: Option<String>,
    pub clocks: Clocks,
    /// Where the local user's identity goes; default: `admin` in the state folder.
    pub admin_identity: Option<PathBuf>,
}

/// Starts schedulers.
#[derive(Debug)]
pub struct Head;

/// A running scheduler.
#[derive(Debug)]
pub struct HeadHandle {
    address: SocketAddr,
    fingerprint: ContentHash,
    admin_identity: PathBuf,
}

impl Head {
    /// Takes the state folder and the port, replays the journal, and serves until shut down.
    ///
    /// # Errors
    /// Another scheduler has the state folder, the port is taken, or the state cannot be read or written.
    pub async fn start(config: HeadConfig) -> Result<HeadHandle, HeadError> {
        Err(HeadError::InUse { path: config.state })
    }
}

impl HeadHandle {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Of its authority: what tokens carry.
    pub fn fingerprint(&self) -> ContentHash {
        self.fingerprint
    }

    /// `key.pem`, `certificate.pem`, `authority.pem`, `scheduler.txt` of the local admin.
    pub fn admin_identity_folder(&self) -> &Path {
        &self.admin_identity
    }

    /// Waits until the scheduler has failed beyond repair (its store is gone).
    pub async fn failed(&mut self) -> HeadError {
        std::future::pending().await
    }

    /// Ends it: peers are told, the clock is stored, the state folder is free again.
    pub async fn shutdown(self) {}
}
