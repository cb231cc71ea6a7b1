//! Agents and connections that come and go while runners go on.

use motley_scheduler_core::artifact::ArtifactKind;
use motley_scheduler_core::failure::FailureReason;
use motley_scheduler_core::wire::agent::AttemptPhase;

use super::vanish::spec;
use super::*;
use crate::attempts::folder::AttemptFolder;
use crate::attempts::process::{Life, RunnerProcess};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_agent_finds_the_runner_of_the_old_one() {
    let state = tempfile::tempdir().unwrap();
    let played = Played::new();
    let agent = start_agent(state.path(), &played);
    until("the connection", || played.is_connected().then_some(())).await;
    start_attempt(&played, assignment("log before\nendpoint http://here\nwait"));
    let pid = runner_pid(state.path()).await;
    until("the first words", || played.log().contains("before").then_some(())).await;
    agent.shutdown().await;
    assert!(exists(pid), "the runner goes on without an agent");

    played.cut(false);
    played.forget_messages();
    let agent = start_agent(state.path(), &played);
    let report = until("the report", || {
        played.received().into_iter().find_map(|message| match message {
            FromAgent::ReportDevices { attempts, .. } => Some(attempts),
            _ => None,
        })
    })
    .await;
    assert_eq!(report.len(), 1);
    assert_eq!(
        (report[0].attempt, report[0].epoch, report[0].phase),
        (ATTEMPT, EPOCH, AttemptPhase::Running)
    );
    assert_eq!(report[0].endpoint.as_deref(), Some("http://here"));
    assert_eq!(runner_pid(state.path()).await, pid);
    // A repeated order to start it changes nothing.
    start_attempt(&played, assignment("log twice"));
    played.say(ToAgent::Stop { attempt: ATTEMPT, epoch: EPOCH, grace: Span::from_seconds(20) });
    assert_eq!(ended(&played).await, Outcome::Cancelled);
    assert!(!played.log().contains("twice"));
    agent.shutdown().await;
}

/// An agent that was killed right after it had started the runner: the runner takes its lock when the next agent has
/// looked for one already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_that_is_slow_to_begin_is_found_and_gets_no_second_beside_it() {
    let state = tempfile::tempdir().unwrap();
    let played = Played::new();
    played.cut(true);
    let folder = AttemptFolder { path: state.path().canonicalize().unwrap().join("attempts/7.1") };
    let mut spec = spec("log begin\nwait", state.path());
    spec.nonce = "first".into();
    folder.create(&spec).unwrap();
    let agent = start_agent(state.path(), &played);
    // Without a connection the attempt is not prepared, so the agent starts no runner yet.
    let mut first = RunnerProcess::start(&folder, &runner_command(), "first").unwrap();
    let pid = runner_pid(state.path()).await;
    assert_eq!(first.pid(), Some(pid));
    played.come_back();
    until("the first words", || played.log().contains("begin").then_some(())).await;
    played.say(ToAgent::Stop { attempt: ATTEMPT, epoch: EPOCH, grace: Span::from_seconds(20) });
    assert_eq!(ended(&played).await, Outcome::Cancelled);
    assert_eq!(played.log().matches("begin").count(), 1, "{}", played.log());
    assert!(!played.log().contains("another runner"), "{}", played.log());
    while first.look() == Life::Alive {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    agent.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happened_without_an_agent_is_reported_by_the_next() {
    for (script, expected) in
        [("checkpoint 5\nignore", None), ("checkpoint 5\nsleep 300\noutput late", Some(Outcome::Succeeded))]
    {
        let state = tempfile::tempdir().unwrap();
        let played = Played::new();
        played.forget_ends(true);
        let agent = start_agent(state.path(), &played);
        until("the connection", || played.is_connected().then_some(())).await;
        start_attempt(&played, assignment(script));
        let pid = runner_pid(state.path()).await;
        let checkpoint = attempt_folder(state.path()).join("checkpoints/step-5");
        until("the checkpoint", || checkpoint.exists().then_some(())).await;
        agent.shutdown().await;
        if expected.is_none() {
            kill(pid);
        }
        until("the end of the runner", || (!exists(pid)).then_some(())).await;

        played.cut(false);
        played.forget_messages();
        let agent = start_agent(state.path(), &played);
        let outcome = ended(&played).await;
        match expected {
            Some(expected) => assert_eq!(outcome, expected),
            None => {
                assert!(matches!(outcome, Outcome::Failed { reason: FailureReason::RunnerLost, .. }));
            }
        }
        let stored = |message: &FromAgent| {
            matches!(message, FromAgent::CheckpointStored { artifact, .. }
                if artifact.kind == ArtifactKind::Checkpoint { step: 5 })
        };
        assert!(played.received().iter().any(stored), "{script}");
        // Nobody has recorded the end: a third agent reports it again.
        agent.shutdown().await;
        played.cut(false);
        played.forget_messages();
        played.forget_ends(false);
        let agent = start_agent(state.path(), &played);
        assert_eq!(ended(&played).await, outcome);
        let folder = attempt_folder(state.path());
        until("the folder to go", || (!folder.exists()).then_some(())).await;
        agent.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_are_exact_over_lost_connections() {
    const LINES: usize = 20_000;
    let state = tempfile::tempdir().unwrap();
    let played = Played::new();
    let agent = start_agent(state.path(), &played);
    until("the connection", || played.is_connected().then_some(())).await;
    start_attempt(&played, assignment(&format!("log begin\nlines {LINES}\nsleep 300")));
    for part in [1, 2, 3] {
        let enough = LINES * 12 * part / 5;
        until("some of the log", || (played.log().len() > enough).then_some(())).await;
        played.cut(true);
        tokio::time::sleep(Duration::from_millis(100)).await;
        played.come_back();
        until("the connection", || played.is_connected().then_some(())).await;
    }
    assert_eq!(ended(&played).await, Outcome::Succeeded);
    let log = played.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.starts_with("line ")).collect();
    assert_eq!(lines.len(), LINES);
    for (number, line) in lines.iter().enumerate() {
        assert_eq!(*line, format!("line {number:06}"));
    }
    agent.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_ends_and_is_stored_while_the_scheduler_is_away() {
    let state = tempfile::tempdir().unwrap();
    let played = Played::new();
    let agent = start_agent(state.path(), &played);
    until("the connection", || played.is_connected().then_some(())).await;
    start_attempt(&played, assignment("log begin\nsleep 200\ncheckpoint 2\noutput a"));
    until("the first words", || played.log().contains("begin").then_some(())).await;
    played.cut(true);
    let result = attempt_folder(state.path()).join("result.json");
    until("the result", || result.exists().then_some(())).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!played.received().iter().any(|message| matches!(message, FromAgent::Ended { .. })));
    played.come_back();
    assert_eq!(ended(&played).await, Outcome::Succeeded);
    agent.shutdown().await;
}
