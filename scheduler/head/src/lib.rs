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

mod admin;
mod agents;
mod blobs;
mod clock;
mod engine;
mod error;
mod lock;
mod logs;
mod outside;
mod serve;
mod store;
mod watchers;

use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use motley_scheduler_core::cluster::Clocks;
use motley_scheduler_core::id::ContentHash;
use motley_scheduler_link::{Authority, Server};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::agents::Agents;
use crate::blobs::Blobs;
use crate::clock::Clock;
use crate::engine::{Engine, Handle, Input};
use crate::lock::FolderLock;
use crate::logs::Logs;
use crate::outside::{LogWriter, Outside};
use crate::serve::Shared;
use crate::store::Writer;
use crate::watchers::Watchers;

pub use error::HeadError;

/// How to run a scheduler.
#[derive(Debug, Clone)]
pub struct HeadConfig {
    /// Everything that has to survive; made if missing.
    pub state: PathBuf,
    /// Port 0 picks a free one.
    pub listen: SocketAddr,
    /// `HOST:PORT` that nodes and users of other machines dial; default: where it listens, by the machine's name
    /// when that is everywhere.
    pub advertise: Option<String>,
    pub clocks: Clocks,
    /// Where the local user's identity goes, unless it holds that of somebody else; default and way out: `admin` in
    /// the state folder.
    pub admin_identity: Option<PathBuf>,
}

/// Starts schedulers.
#[derive(Debug)]
pub struct Head;

/// A running scheduler. Dropped, it ends at once, as if it had been killed.
#[derive(Debug)]
pub struct HeadHandle {
    state: PathBuf,
    address: SocketAddr,
    advertised: String,
    fingerprint: ContentHash,
    admin_identity: PathBuf,
    engine: Handle,
    working: Option<JoinHandle<Result<(), HeadError>>>,
    serving: JoinHandle<()>,
    stop_serving: Option<oneshot::Sender<()>>,
}

impl Head {
    /// Takes the state folder and the port, replays the journal, and serves until shut down.
    ///
    /// # Errors
    /// Another scheduler has the state folder, the port is taken, or the state cannot be read or written.
    pub async fn start(config: HeadConfig) -> Result<HeadHandle, HeadError> {
        let state = &config.state;
        let lock = FolderLock::take_soon(state).await?;
        let authority = Arc::new(authority(&state.join("authority"))?);
        let writer = Writer::open(state, lock)?;
        let stored = writer.load().await?;
        let clock = Clock::start(stored.clock, SystemTime::now(), Instant::now());
        let changes = stored.changes.len();
        let cluster = engine::replay(&config.clocks, stored.changes)?;
        let blobs = Blobs::open(&state.join("blobs"))?;
        let logs = Logs::open(&state.join("logs"))?;
        let server = Server::bind(config.listen, &authority)?;
        let address = server.local_address();
        let advertised = config.advertise.unwrap_or_else(|| admin::advertised(address));
        let own_identity = state.join("admin");
        let wanted = config.admin_identity.as_deref().unwrap_or(&own_identity);
        let admin_identity =
            admin::prepare((wanted, &own_identity), &authority, address, &advertised)?.to_owned();
        tracing::info!(%address, state = %state.display(), changes, "scheduler started");

        let (agents, watchers) = (Arc::new(Agents::default()), Arc::new(Watchers::default()));
        let log_writer = LogWriter::start(logs.clone(), agents.clone(), watchers.clone())?;
        let outside = Outside {
            agents,
            watchers: watchers.clone(),
            authority: authority.clone(),
            logs: log_writer.clone(),
        };
        let (engine, handle) = Engine::new(cluster, config.clocks.clone(), clock, writer, outside);
        let fingerprint = authority.fingerprint();
        let shared =
            Shared { engine: handle.clone(), blobs, logs, log_writer, watchers, authority, fingerprint };
        let (stop_serving, stopped) = oneshot::channel();
        let serving = tokio::spawn(serve::serve_all(server, Arc::new(shared), stopped));
        Ok(HeadHandle {
            state: state.clone(),
            address,
            advertised,
            fingerprint,
            admin_identity,
            engine: handle,
            working: Some(tokio::spawn(engine.run())),
            serving,
            stop_serving: Some(stop_serving),
        })
    }
}

impl HeadHandle {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where this machine dials it: a loopback address if it listens on all.
    pub fn local_address(&self) -> SocketAddr {
        admin::local(self.address)
    }

    /// What others dial.
    pub fn advertised(&self) -> &str {
        &self.advertised
    }

    /// Of its authority: what tokens carry.
    pub fn fingerprint(&self) -> ContentHash {
        self.fingerprint
    }

    /// `key.pem`, `certificate.pem`, `authority.pem`, `scheduler.txt`, `advertised.txt` of the local admin. Another
    /// folder than was configured where that holds an identity of somebody else.
    pub fn admin_identity_folder(&self) -> &Path {
        &self.admin_identity
    }

    /// Waits until the scheduler has failed beyond repair: its store is gone.
    pub async fn failed(&mut self) -> HeadError {
        let Some(working) = &mut self.working else { return std::future::pending().await };
        let result = working.await;
        self.working = None;
        let ended = |reason: String| HeadError::Ended { what: "engine", reason };
        match result {
            Ok(Ok(())) => ended("it was stopped".into()),
            Ok(Err(error)) => error,
            Err(error) => ended(error.to_string()),
        }
    }

    /// Ends it: what was decided is stored, peers are told, folder and port are free again.
    pub async fn shutdown(mut self) {
        let (stopped, waited) = oneshot::channel();
        self.engine.send(Input::Stop { stopped }).await;
        // An engine that has failed does not answer, and has nothing to store.
        let _ = waited.await;
        if let Some(stop) = self.stop_serving.take() {
            let _ = stop.send(());
        }
        let _ = (&mut self.serving).await;
        tracing::info!(address = %self.address, "scheduler stopped");
        let (address, state) = (self.address, self.state.clone());
        drop(self);
        port_is_free(address).await;
        // Taken and let go: the journal's thread has closed its file. Failing that, the next start says so.
        let _ = FolderLock::take_soon(&state).await;
    }
}

impl Drop for HeadHandle {
    fn drop(&mut self) {
        self.serving.abort();
        if let Some(working) = &self.working {
            working.abort();
        }
    }
}

/// The authority of a state folder: made at the first start.
fn authority(folder: &Path) -> Result<Authority, HeadError> {
    if let Some(authority) = Authority::load(folder)? {
        return Ok(authority);
    }
    let authority = Authority::create()?;
    authority.save(folder)?;
    tracing::info!(fingerprint = %authority.fingerprint(), "authority made");
    Ok(authority)
}

/// The last packets are sent by a task of their own, which holds the socket: waits for it, a second at most.
async fn port_is_free(address: SocketAddr) {
    for _ in 0..100 {
        if UdpSocket::bind(address).is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
