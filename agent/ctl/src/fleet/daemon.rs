//! `ctl scheduler` and `ctl agent`: the two daemons, until SIGTERM or Ctrl-C.

use motley_agent_node::{Agent, AgentConfig, NodeSettings, RunnerCommand};
use motley_scheduler_core::cluster::Clocks;
use motley_scheduler_head::{Head, HeadConfig};
use serde_json::json;

use crate::arguments::{AgentArguments, Common, SchedulerArguments};
use crate::failure::Failure;
use crate::folders;
use crate::output::Output;
use crate::signals::Signals;

pub async fn scheduler(
    common: &Common,
    arguments: SchedulerArguments,
    output: &Output,
) -> Result<(), Failure> {
    let state = match arguments.state {
        Some(state) => state,
        None => folders::scheduler_state()?,
    };
    let mut signals = Signals::new()?;
    let config = HeadConfig {
        state,
        listen: arguments.listen,
        advertise: arguments.advertise,
        clocks: Clocks::default(),
        admin_identity: Some(super::identity_folder(common)?),
    };
    let mut head = Head::start(config).await.map_err(Failure::failed)?;
    output.data(
        || {
            format!(
                "scheduler on {}, identity of its admin in {}",
                head.address(),
                head.admin_identity_folder().display()
            )
        },
        || {
            json!({
                "address": head.address().to_string(),
                "fingerprint": head.fingerprint().to_string(),
                "identity": head.admin_identity_folder(),
            })
        },
    );
    let failure = tokio::select! {
        () = signals.next() => None,
        error = head.failed() => Some(Failure::failed(error)),
    };
    head.shutdown().await;
    failure.map_or(Ok(()), Err)
}

pub async fn agent(arguments: AgentArguments, output: &Output) -> Result<(), Failure> {
    let state = match arguments.state {
        Some(state) => state,
        None => folders::agent_state()?,
    };
    let mut signals = Signals::new()?;
    let config = AgentConfig {
        settings: NodeSettings::from_environment(state.join("cache")),
        state,
        scheduler: arguments.scheduler.clone(),
        name: arguments.name,
        token: arguments.token,
        threads: arguments.threads,
        embedded: None,
        runner: RunnerCommand::of_this_program()
            .map_err(|error| Failure::failed(format!("cannot find this program: {error}")))?,
    };
    let mut agent = Agent::start(config).await.map_err(Failure::failed)?;
    output
        .data(|| format!("agent of {}", arguments.scheduler), || json!({ "scheduler": arguments.scheduler }));
    let failure = tokio::select! {
        () = signals.next() => None,
        end = agent.ended() => end.err().map(Failure::failed),
    };
    agent.shutdown().await;
    failure.map_or(Ok(()), Err)
}
