//! The agent: the node's one link to the scheduler, and the keeper of its attempts.
//!
//! It never opens a compute driver and never ends because of a job. Ending it leaves runners running; the next agent
//! in the same state folder finds them.

mod engine;
pub(crate) mod facts;
mod join;
mod random;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use motley_scheduler_core::id::NodeId;
use motley_scheduler_core::wire::agent::DeviceDetails;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::devices::Inventory;
use crate::error::NodeError;
use crate::runner::Embedded;
use crate::settings::AgentConfig;
use crate::transfer::download::BlobCache;
use crate::uplink::Uplink;
use crate::uplink::quic::QuicUplink;
use engine::{Engine, Home};

/// Starts agents.
#[derive(Debug)]
pub struct Agent;

/// A running agent. Dropped, the agent ends as after [`AgentHandle::shutdown`], unawaited.
#[derive(Debug)]
pub struct AgentHandle {
    node: NodeId,
    name: String,
    details: Vec<DeviceDetails>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Agent {
    /// Joins if need be, takes over the attempts of an earlier agent, and begins to connect; a scheduler that cannot
    /// be reached is dialed for ever.
    ///
    /// # Errors
    /// The state folder is in use or cannot be written, there is no identity and no (good) token, or the scheduler
    /// refuses to let the node join.
    pub async fn start(config: AgentConfig) -> Result<AgentHandle, NodeError> {
        let mut config = config;
        let lock = open_state(&config.state)?;
        // Runners have another current folder.
        config.state = fs::canonicalize(&config.state)
            .map_err(|source| NodeError::State { path: config.state.clone(), source })?;
        let name = config.name.clone().unwrap_or_else(facts::host_name);
        let folder = config.state.join("identity");
        let (node, identity) =
            join::identity(&folder, &config.scheduler, config.token.as_deref(), &name).await?;
        let uplink = Arc::new(QuicUplink::new(config.scheduler.clone(), folder, identity));
        let search = config.devices.clone();
        let inventory = tokio::task::spawn_blocking(move || search.inventory()).await;
        let inventory = inventory.map_err(|error| NodeError::Task { message: error.to_string() })?;
        for missing in &inventory.missing {
            tracing::info!(backend = missing.backend.name(), remedy = missing.remedy, "{}", missing.what);
        }
        start_with(config, uplink, (node, name), lock, &inventory)
    }
}

/// [`Agent::start`] after the joining.
fn start_with(
    config: AgentConfig,
    uplink: Arc<dyn Uplink>,
    (node, name): (NodeId, String),
    lock: File,
    inventory: &Inventory,
) -> Result<AgentHandle, NodeError> {
    let state = |source| NodeError::State { path: config.state.clone(), source };
    let facts = facts::read(name.clone(), inventory).map_err(|source| NodeError::Facts { source })?;
    let attempts = config.state.join("attempts");
    private_folder(&attempts).map_err(state)?;
    let cache =
        BlobCache::open(config.state.join("blobs")).map_err(|error| state(io::Error::other(error)))?;
    let embedded = config.embedded.clone().map(|root| Embedded { parent: std::process::id(), root });
    let cores = facts.node.cores.max(1);
    let threads = config.threads.unwrap_or(cores).clamp(1, cores);
    let details = facts.details.clone();
    let home = Home { attempts, facts, threads, settings: config.settings.clone(), embedded };
    let (stop, stopped) = watch::channel(false);
    let mut engine = Engine::new(uplink, home, cache, config.runner.clone());
    engine.take_over().map_err(state)?;
    let task = tokio::spawn(async move {
        engine.run(stopped).await;
        // Until here no other agent may use the folder.
        drop(lock);
    });
    Ok(AgentHandle { node, name, details, stop, task })
}

impl AgentHandle {
    pub fn node(&self) -> NodeId {
        self.node
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is known of the node's devices beside what it reports to every scheduler.
    pub fn details(&self) -> &[DeviceDetails] {
        &self.details
    }

    /// Ends the agent. Runners go on; in embedded mode they are stopped first.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        let _ = (&mut self.task).await;
    }

    /// Waits for the end of the agent, which never ends by itself.
    ///
    /// # Errors
    /// It did so all the same, which is a mistake of ours.
    pub async fn ended(&mut self) -> Result<(), NodeError> {
        (&mut self.task).await.map_err(|error| NodeError::Task { message: error.to_string() })
    }
}

/// Makes the state folder, tries that it can be written, and locks it. The lock goes with the file.
fn open_state(path: &Path) -> Result<File, NodeError> {
    let state = |source| NodeError::State { path: path.to_path_buf(), source };
    private_folder(path).map_err(state)?;
    let probe = path.join(".probe");
    fs::write(&probe, vec![0; 4096]).and_then(|()| fs::remove_file(&probe)).map_err(state)?;
    let lock = File::options().create(true).truncate(false).write(true).open(path.join("agent.lock"));
    let lock = lock.map_err(state)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => Err(NodeError::Taken { path: path.to_path_buf() }),
        Err(fs::TryLockError::Error(source)) => Err(state(source)),
    }
}

fn private_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}
