//! Runners on their own: without a lease, without a parent.

use std::process::{Command, Stdio};

use motley_scheduler_core::failure::FailureReason;

use super::*;
use crate::attempts::folder::AttemptFolder;
use crate::runner::result::RunnerResult;
use crate::runner::{Embedded, RunnerSpec};

/// Folder of the fake parent's attempt.
const FOLDER_VARIABLE: &str = "MOTLEY_TEST_FOLDER";

pub(super) fn spec(script: &str, root: &Path) -> RunnerSpec {
    RunnerSpec {
        assignment: assignment(script),
        device_index: 0,
        node: "test-node".into(),
        threads: 1,
        keep_running: Span::from_seconds(600),
        settings: NodeSettings::from_environment(root.join("models")),
        nonce: "0123".into(),
        embedded: None,
    }
}

fn start_runner(folder: &Path) -> std::process::Child {
    let command = runner_command();
    let log = std::fs::File::create(folder.join("output.log")).unwrap();
    Command::new(command.program)
        .args(command.arguments)
        .arg(folder)
        .env(NONCE_VARIABLE, "0123")
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

#[test]
fn a_runner_without_renewals_stops_after_its_lease_and_what_it_may_run_on() {
    let state = tempfile::tempdir().unwrap();
    let mut spec = spec("wait", state.path());
    spec.assignment.lease = Span { milliseconds: 300 };
    spec.keep_running = Span { milliseconds: 300 };
    let folder = AttemptFolder { path: state.path().join("7.1") };
    folder.create(&spec).unwrap();
    let begin = Instant::now();
    let mut child = start_runner(&folder.path);
    assert!(child.wait().unwrap().success());
    assert!(begin.elapsed() > Duration::from_millis(600));
    let result = RunnerResult::read(&folder.path).unwrap().unwrap();
    assert!(matches!(result.outcome, Outcome::Failed { reason: FailureReason::NodeLost, .. }));
    let log = std::fs::read_to_string(folder.log()).unwrap();
    assert!(log.contains("going on locally") && log.contains("stopping"), "{log}");
}

#[test]
fn a_second_runner_does_not_work_in_the_folder_of_the_first() {
    let state = tempfile::tempdir().unwrap();
    let folder = AttemptFolder { path: state.path().join("7.1") };
    folder.create(&spec("sleep 2500", state.path())).unwrap();
    let mut first = start_runner(&folder.path);
    let begin = Instant::now();
    while !folder.path.join("pid.json").exists() {
        assert!(begin.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(folder.is_locked());
    assert!(!start_runner(&folder.path).wait().unwrap().success());
    assert!(first.wait().unwrap().success());
    assert!(!folder.is_locked());
}

/// Does nothing as a test; with a folder in its environment it is the parent of an embedded runner.
#[test]
fn fake_parent() {
    let Some(root) = std::env::var_os(FOLDER_VARIABLE) else { return };
    let root = PathBuf::from(root);
    let folder = AttemptFolder { path: root.join("agent/attempts/7.1") };
    let mut spec = spec("lines 100000000", &root);
    spec.embedded = Some(Embedded { parent: std::process::id(), root });
    folder.create(&spec).unwrap();
    start_runner(&folder.path).wait().unwrap();
}

#[test]
fn an_embedded_runner_ends_with_its_parent_and_leaves_nothing_behind() {
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path().join("motley-run");
    std::fs::create_dir(&root).unwrap();
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "agent::tests::vanish::fake_parent", "--nocapture", "--test-threads=1"])
        .env(FOLDER_VARIABLE, &root)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let folder = AttemptFolder { path: root.join("agent/attempts/7.1") };
    let begin = Instant::now();
    let runner = loop {
        if let Some(identity) = folder.process() {
            break identity;
        }
        assert!(begin.elapsed() < PATIENCE, "the runner does not begin");
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(runner.is_alive());
    parent.kill().unwrap();
    parent.wait().unwrap();
    while runner.is_alive() || std::fs::read_dir(temporary.path()).unwrap().count() > 0 {
        assert!(begin.elapsed() < PATIENCE, "the runner goes on, or its files stay");
        std::thread::sleep(Duration::from_millis(10));
    }
}
