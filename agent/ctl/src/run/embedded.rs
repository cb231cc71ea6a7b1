//! Scheduler and agent inside this process, on loopback, with a temporary store.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use motley_agent_node::{Agent, AgentConfig, AgentHandle, DeviceSearch, NodeSettings, RunnerCommand};
use motley_scheduler_core::cluster::Clocks;
use motley_scheduler_core::document::{BackendKind, Memory, Resources};
use motley_scheduler_core::id::JobId;
use motley_scheduler_core::unit::Span;
use motley_scheduler_core::wire::client::{
    DeviceView, FromClient, NodeState, NodeView, ToClient, TokenGrant,
};
use motley_scheduler_head::{Head, HeadConfig, HeadHandle};

use super::sweeper::Sweeper;
use crate::devices;
use crate::failure::Failure;
use crate::fleet::submission::Prepared;
use crate::fleet::{Fleet, unexpected};
use crate::folders;

/// How long the agent of this process may take to report its devices.
const JOIN_TIME: Duration = Duration::from_secs(30);

/// A fleet of one.
pub(super) struct Embedded {
    head: HeadHandle,
    agent: AgentHandle,
    sweeper: Sweeper,
    folder: PathBuf,
}

impl Embedded {
    /// `reserved` are the empty folders that must not outlive this process.
    pub(super) async fn start(prepared: &Prepared, reserved: &[PathBuf]) -> Result<Embedded, Failure> {
        let folder = tempfile::Builder::new()
            .prefix("motley-run-")
            // Data, keys and hub tokens of the job lie in it.
            .permissions(std::fs::Permissions::from_mode(0o700))
            .tempdir()
            .map_err(|error| {
                Failure::failed(format!("no temporary folder: {error}"))
                    .hint("TMPDIR names the folder for temporary files")
            })?
            .keep();
        // From here on the sweeper removes the folder, whatever happens to this process.
        let sweeper = Sweeper::start(&folder, reserved)?;
        let head = Head::start(HeadConfig {
            state: folder.join("scheduler"),
            listen: ([127, 0, 0, 1], 0).into(),
            advertise: None,
            clocks: Clocks::default(),
            admin_identity: Some(folder.join("identity")),
        })
        .await
        .map_err(Failure::failed)?;
        let token = node_token(&Fleet::at(folder.join("identity")).await?).await?;
        let config = AgentConfig {
            state: folder.join("agent"),
            scheduler: head.address().to_string(),
            name: None,
            token: Some(token),
            threads: prepared.document.resources.first().and_then(|resources| resources.threads),
            settings: NodeSettings::from_environment(folders::cache()?),
            embedded: Some(folder.clone()),
            runner: RunnerCommand::of_this_program()
                .map_err(|error| Failure::failed(format!("cannot find this program: {error}")))?,
            devices: search(&prepared.document.resources)?,
        };
        let agent = Agent::start(config).await.map_err(Failure::failed)?;
        Ok(Embedded { head, agent, sweeper, folder })
    }

    pub(super) fn identity(&self) -> PathBuf {
        self.folder.join("identity")
    }

    /// Refuses a job that no device of this machine can hold, with the figures: nobody else will come. A figure that
    /// was not stated but estimated refuses nothing: the job gets the largest device as it is, and its runner, which
    /// knows the model, decides before it loads it.
    pub(super) async fn fit_memory(&self, fleet: &Fleet, prepared: &mut Prepared) -> Result<(), Failure> {
        let node = self.node(fleet).await?;
        let mut refusals = Vec::new();
        let mut absent = false;
        for (resources, needed) in prepared.document.resources.iter().zip(&mut prepared.memory) {
            let takes = |device: &&DeviceView| {
                let details = self.agent.details().iter().find(|details| details.index == device.facts.index);
                details.is_some_and(|details| {
                    resources.takes(device.facts.backend, details.backend_index)
                        && !(resources.fastest && details.is_software)
                })
            };
            let Some(largest) = node.devices.iter().filter(takes).map(|device| device.facts.memory).max()
            else {
                refusals.push(format!("this machine has no {}", wanted(resources)));
                absent = true;
                continue;
            };
            if resources.memory == Memory::Auto {
                *needed = (*needed).min(largest);
            }
            if *needed <= largest {
                return Ok(());
            }
            refusals.push(format!("the job needs {needed} on one device, the largest here has {largest}"));
        }
        let refusal = refusals.join("; ");
        if absent {
            return Err(devices::absent(&refusal, &prepared.document.resources).await?);
        }
        Err(Failure::usage(refusal).hint(REMEDY))
    }

    async fn node(&self, fleet: &Fleet) -> Result<NodeView, Failure> {
        let deadline = tokio::time::Instant::now() + JOIN_TIME;
        loop {
            match fleet.ask(FromClient::Nodes).await? {
                ToClient::Nodes(nodes) => {
                    let ready = |node: &NodeView| node.state == NodeState::Ready && !node.devices.is_empty();
                    if let Some(node) = nodes.into_iter().find(ready) {
                        return Ok(node);
                    }
                }
                other => return Err(unexpected(&other)),
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(Failure::failed("the agent of this process reported no device in time")
                    .hint("`ctl doctor` says which devices this machine has"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends agent, runners and scheduler, and removes the temporary store.
    pub(super) async fn end(self) {
        self.agent.shutdown().await;
        self.head.shutdown().await;
        self.sweeper.sweep().await;
    }

    /// Ends agent, runners and scheduler, and leaves the store where it is.
    pub(super) async fn end_keeping(self) {
        self.agent.shutdown().await;
        self.head.shutdown().await;
        self.sweeper.sweep_keeping().await;
    }

    /// Leaves everything to the sweeper: the end of this process is its sign.
    pub(super) fn leave(self) {}

    /// What to say when the results of `job` could not be copied to `folder`: where they are, and how to get them.
    pub(super) fn kept(&self, failure: Failure, job: JobId, folder: &Path) -> Failure {
        let store = self.folder.display();
        let serve = format!("ctl scheduler --state {store}/scheduler --identity {store}/identity");
        let pull = format!("ctl artifacts pull {job} {} --identity {store}/identity", folder.display());
        let hint = format!(
            "run `{serve} --listen {}` and beside it `{pull}`; then remove {store}",
            self.head.address()
        );
        let message = format!("{}\nthe results are kept in {store}", failure.message);
        Failure { message, hint: Some(hint), ..failure }
    }
}

const REMEDY: &str = "lower train.batch_size, train.token_budget or model.max_length, or state the memory yourself \
                      with resources.memory";

/// Where nothing but the processor is wanted, no driver is asked.
fn search(resources: &[Resources]) -> Result<DeviceSearch, Failure> {
    let mut backends = BackendKind::ALL.to_vec();
    backends.retain(|backend| resources.iter().any(|resources| resources.backend.contains(backend)));
    Ok(match backends == [BackendKind::Cpu] {
        true => DeviceSearch::Processor,
        false => DeviceSearch::ToChoose { probe: devices::local_probe()?, backends },
    })
}

/// `cuda or cpu device 1`
fn wanted(resources: &Resources) -> String {
    let names: Vec<&str> = resources.backend.iter().map(|kind| kind.name()).collect();
    let indices: Vec<String> = resources.device.iter().map(u32::to_string).collect();
    let indices = if indices.is_empty() { String::new() } else { format!(" {}", indices.join(" or ")) };
    format!("{} device{indices}", names.join(" or "))
}

async fn node_token(fleet: &Fleet) -> Result<String, Failure> {
    let valid = Span::from_seconds(60);
    match fleet.ask(FromClient::CreateToken { grants: TokenGrant::Node, valid }).await? {
        ToClient::Token { token, .. } => Ok(token),
        other => Err(unexpected(&other)),
    }
}
