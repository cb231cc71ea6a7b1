//! `ctl scheduler` and `ctl agent`: the two daemons, until SIGTERM or Ctrl-C.

use motley_agent_node::devices::Probe;
use motley_agent_node::{Agent, AgentConfig, DeviceSearch, NodeSettings, RunnerCommand};
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
    let clocks = Clocks {
        beat: arguments.beat,
        suspect_after: arguments.suspect_after,
        lost_after: arguments.lost_after,
        lease: arguments.lost_after,
        keep_running: arguments.keep_running,
        ..Clocks::default()
    };
    clocks.check().map_err(Failure::usage)?;
    let wanted = super::identity_folder(common)?;
    let mut signals = Signals::new()?;
    let config = HeadConfig {
        state,
        listen: arguments.listen,
        advertise: arguments.advertise,
        clocks,
        admin_identity: Some(wanted.clone()),
    };
    let mut head = Head::start(config).await.map_err(Failure::failed)?;
    let identity = head.admin_identity_folder();
    if identity != wanted {
        output.talk(&format!(
            "warning: {} holds another identity, which is kept; that of this scheduler's admin is in {}\n\
             hint: `ctl --identity {} COMMAND` uses it, as does MOTLEY_IDENTITY",
            wanted.display(),
            identity.display(),
            identity.display()
        ));
    }
    output.data(
        || {
            format!(
                "scheduler on {}, for others {}, identity of its admin in {}",
                head.address(),
                head.advertised(),
                identity.display()
            )
        },
        || {
            json!({
                "address": head.address().to_string(),
                "advertised": head.advertised(),
                "fingerprint": head.fingerprint().to_string(),
                "identity": identity,
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
    let cannot = |error| Failure::failed(format!("cannot find this program: {error}"));
    let probe = Probe::of_this_program(state.join("devices.json")).map_err(cannot)?;
    let config = AgentConfig {
        settings: NodeSettings::from_environment(state.join("cache")),
        state,
        scheduler: arguments.scheduler.clone(),
        name: arguments.name,
        token: arguments.token,
        threads: arguments.threads,
        embedded: None,
        runner: RunnerCommand::of_this_program().map_err(cannot)?,
        devices: DeviceSearch::All { probe },
    };
    let mut agent = Agent::start(config).await?;
    output
        .data(|| format!("agent of {}", arguments.scheduler), || json!({ "scheduler": arguments.scheduler }));
    let failure = tokio::select! {
        () = signals.next() => None,
        end = agent.ended() => end.err().map(Failure::from),
    };
    agent.shutdown().await;
    failure.map_or(Ok(()), Err)
}
