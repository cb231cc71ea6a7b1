//! The agent with real runner processes and a scheduler that is played.
//!
//! A runner here is this test program, started again with [`fake_runner`] as its only test: the real shell of a
//! runner around a workload that follows a script, which travels in the place of the job document.

mod played;
mod restart;
mod run_through;
mod script;
mod vanish;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use motley_scheduler_core::document::BackendKind;
use motley_scheduler_core::id::{AttemptId, Epoch, JobId, NodeId};
use motley_scheduler_core::unit::{Bytes, Span};
use motley_scheduler_core::wire::agent::{Assignment, FromAgent, Outcome, ToAgent};

use super::{AgentHandle, open_state, start_with};
use crate::devices::Inventory;
use crate::runner::process::{NONCE_VARIABLE, ProcessIdentity};
use crate::settings::{AgentConfig, DeviceSearch, NodeSettings, RunnerCommand};
use played::Played;

/// Far more than anything here takes: a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(180);

const ATTEMPT: AttemptId = AttemptId { job: JobId(7), number: 1 };
const EPOCH: Epoch = Epoch(41);

/// Does nothing as a test; as a runner it is the whole program.
#[test]
fn fake_runner() {
    if std::env::var_os(NONCE_VARIABLE).is_none() {
        return;
    }
    let folder = std::env::args().next_back().unwrap();
    let code = crate::runner::shell::run(Path::new(&folder), script::follow);
    std::process::exit(if code == std::process::ExitCode::SUCCESS { 0 } else { 1 });
}

fn runner_command() -> RunnerCommand {
    let arguments = ["--exact", "agent::tests::fake_runner", "--nocapture", "--test-threads=1"];
    RunnerCommand {
        program: std::env::current_exe().unwrap(),
        arguments: arguments.into_iter().map(Into::into).collect(),
    }
}

fn config(state: &Path) -> AgentConfig {
    AgentConfig {
        state: state.to_path_buf(),
        scheduler: "played".into(),
        name: Some("test-node".into()),
        token: None,
        threads: Some(1),
        settings: NodeSettings::from_environment(state.join("models")),
        embedded: None,
        runner: runner_command(),
        devices: DeviceSearch::Processor,
    }
}

fn start_agent(state: &Path, played: &Arc<Played>) -> AgentHandle {
    let lock = open_state(state).unwrap();
    let inventory = Inventory::default();
    start_with(config(state), played.clone(), (NodeId(1), "test-node".into()), lock, &inventory).unwrap()
}

fn assignment(script: &str) -> Assignment {
    Assignment {
        attempt: ATTEMPT,
        epoch: EPOCH,
        name: "scripted".into(),
        document: script.into(),
        files: Vec::new(),
        device: 0,
        backend: BackendKind::Cpu,
        memory: Bytes::from_mebibytes(1),
        inputs: Vec::new(),
        resume: None,
        lease: Span::from_seconds(30),
    }
}

fn start_attempt(played: &Played, assignment: Assignment) {
    played.say(ToAgent::Start(Box::new(assignment)));
}

/// Waits until `look` finds something.
async fn until<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begin.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn ended(played: &Played) -> Outcome {
    until("the end report", || {
        played.received().into_iter().find_map(|message| match message {
            FromAgent::Ended { attempt: ATTEMPT, epoch: EPOCH, outcome, .. } => Some(outcome),
            _ => None,
        })
    })
    .await
}

fn attempt_folder(state: &Path) -> PathBuf {
    state.canonicalize().unwrap().join("attempts").join(ATTEMPT.to_string())
}

async fn runner_pid(state: &Path) -> u32 {
    let folder = attempt_folder(state);
    let path = folder.join("pid.json");
    let identity: ProcessIdentity =
        until("pid.json", || crate::runner::files::read_json(&path).unwrap_or(None)).await;
    identity.pid
}

fn exists(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn kill(pid: u32) {
    let pid = nix::unistd::Pid::from_raw(pid as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}
