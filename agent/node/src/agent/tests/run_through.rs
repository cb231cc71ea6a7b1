//! One agent, one runner, one end.

use std::fs;

use motley_scheduler_core::artifact::{ArtifactKind, ArtifactRef, FileEntry, Manifest};
use motley_scheduler_core::failure::FailureReason;
use motley_scheduler_core::wire::agent::AttemptPhase;

use super::*;
use crate::error::NodeError;

fn output(played: &Played) -> Option<ArtifactRef> {
    played.received().into_iter().find_map(|message| match message {
        FromAgent::Ended { output, .. } => output,
        _ => None,
    })
}

fn checkpoints(played: &Played) -> Vec<ArtifactRef> {
    let stored = |message| match message {
        FromAgent::CheckpointStored { artifact, .. } => Some(artifact),
        _ => None,
    };
    played.received().into_iter().filter_map(stored).collect()
}

fn manifest(played: &Played, artifact: ArtifactRef) -> Manifest {
    serde_json::from_slice(&played.blob(artifact.manifest)).unwrap()
}

async fn gone(state: &Path) {
    let folder = attempt_folder(state);
    until("the attempt folder to go", || (!folder.exists()).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_prepared_run_stored_reported_and_forgotten() {
    let state = tempfile::tempdir().unwrap();
    let played = Played::new();
    let hash = played.add_blob(b"{\"text\": \"a\"}\n");
    let size = Bytes(14);
    let files = vec![FileEntry { path: "data.train/a.jsonl".into(), hash, size }];
    let inner = Manifest { kind: ArtifactKind::Output, attempt: ATTEMPT, epoch: EPOCH, files: files.clone() };
    let inner = played.add_blob(&serde_json::to_vec(&inner).unwrap());
    let agent = start_agent(state.path(), &played);
    until("the connection", || played.is_connected().then_some(())).await;
    let script = "log begin\nendpoint http://here\ncheckpoint 3\npartial 9\n\
                  copy input/data.train/a.jsonl copied.jsonl\ncopy inputs/job-2/data.train/a.jsonl other.jsonl\n\
                  copy resume/data.train/a.jsonl third.jsonl\noutput adapter.bin\nlog end";
    let resume = ArtifactRef { kind: ArtifactKind::Checkpoint { step: 1 }, manifest: inner };
    let assignment =
        Assignment { files, inputs: vec![(JobId(2), inner)], resume: Some(resume), ..assignment(script) };
    start_attempt(&played, assignment);
    assert_eq!(ended(&played).await, Outcome::Succeeded);

    let output = output(&played).expect("there is an output");
    let listed = manifest(&played, output);
    assert_eq!((listed.attempt, listed.epoch, listed.kind), (ATTEMPT, EPOCH, ArtifactKind::Output));
    let paths: Vec<&str> = listed.files.iter().map(|entry| entry.path.as_str()).collect();
    assert_eq!(paths, ["adapter.bin", "copied.jsonl", "other.jsonl", "third.jsonl"]);
    assert_eq!(listed.files[1].hash, hash);
    let stored = played.stored();
    assert_eq!(stored.last(), Some(&output.manifest), "the manifest is stored after everything it names");
    let checkpoints = checkpoints(&played);
    assert_eq!(checkpoints.len(), 1, "the unfinished one is no checkpoint");
    assert_eq!(checkpoints[0].kind, ArtifactKind::Checkpoint { step: 3 });
    let listed = manifest(&played, checkpoints[0]);
    assert_eq!(played.blob(listed.files[0].hash), b"weights of 3");
    let reports = played.received();
    assert!(reports.iter().any(|message| matches!(message,
        FromAgent::Attempt(report) if report.phase == AttemptPhase::Running
            && report.endpoint.as_deref() == Some("http://here"))));
    assert!(played.log().contains("begin\n") && played.log().contains("end\n"));
    gone(state.path()).await;
    agent.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn panics_and_failures_end_the_job_with_words_and_not_the_agent() {
    let state = tempfile::tempdir().unwrap();
    let played = Played::new();
    let agent = start_agent(state.path(), &played);
    until("the connection", || played.is_connected().then_some(())).await;
    start_attempt(&played, assignment("output half\npanic index 7 of 5"));
    let Outcome::Failed { reason, message } = ended(&played).await else { panic!("it failed") };
    assert_eq!(reason, FailureReason::Internal);
    assert!(message.contains("index 7 of 5") && message.contains("script.rs") && message.contains("hint:"));
    gone(state.path()).await;

    played.forget_messages();
    start_attempt(&played, assignment("fail a.jsonl line 3: no text"));
    let expected =
        Outcome::Failed { reason: FailureReason::DataError, message: "a.jsonl line 3: no text".into() };
    assert_eq!(ended(&played).await, expected);
    gone(state.path()).await;
    agent.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_runner_is_noticed_and_reported_after_its_newest_checkpoint() {
    let state = tempfile::tempdir().unwrap();
    let played = Played::new();
    let agent = start_agent(state.path(), &played);
    until("the connection", || played.is_connected().then_some(())).await;
    start_attempt(&played, assignment("checkpoint 4\ncheckpoint 9\npartial 12\nlog deep in thought\nignore"));
    until("the first words", || played.log().contains("deep in thought").then_some(())).await;
    kill(runner_pid(state.path()).await);
    let Outcome::Failed { reason, message } = ended(&played).await else { panic!("it was lost") };
    assert_eq!(reason, FailureReason::RunnerLost);
    assert!(message.contains("signal 9") && message.contains("deep in thought"), "{message}");
    let messages = played.received();
    let ended = messages.iter().position(|message| matches!(message, FromAgent::Ended { .. })).unwrap();
    let newest = messages.iter().position(|message| {
        matches!(message, FromAgent::CheckpointStored { artifact, .. }
            if artifact.kind == ArtifactKind::Checkpoint { step: 9 })
    });
    assert!(newest.is_some_and(|newest| newest < ended));
    assert!(checkpoints(&played).iter().all(|found| found.kind != ArtifactKind::Checkpoint { step: 12 }));
    agent.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_runner_ends_itself_and_one_that_does_not_is_killed() {
    let state = tempfile::tempdir().unwrap();
    let played = Played::new();
    let agent = start_agent(state.path(), &played);
    until("the connection", || played.is_connected().then_some(())).await;
    for (script, grace, output_expected) in
        [("output a\nwait", 20_000, true), ("output a\nignore", 600, false)]
    {
        played.forget_messages();
        start_attempt(&played, assignment(script));
        let pid = runner_pid(state.path()).await;
        let file = attempt_folder(state.path()).join("output/a");
        until("the output", || file.exists().then_some(())).await;
        played.say(ToAgent::Stop { attempt: ATTEMPT, epoch: Epoch(40), grace: Span { milliseconds: 0 } });
        played.say(ToAgent::Stop { attempt: ATTEMPT, epoch: EPOCH, grace: Span { milliseconds: grace } });
        assert_eq!(ended(&played).await, Outcome::Cancelled, "{script}");
        assert!(!exists(pid), "{script}");
        assert_eq!(output(&played).is_some(), output_expected, "{script}");
        gone(state.path()).await;
    }
    agent.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_attempt_is_stopped_and_publishes_nothing() {
    let state = tempfile::tempdir().unwrap();
    let played = Played::new();
    let agent = start_agent(state.path(), &played);
    until("the connection", || played.is_connected().then_some(())).await;
    start_attempt(&played, assignment("log begin\nwait"));
    let pid = runner_pid(state.path()).await;
    until("the first words", || played.log().contains("begin").then_some(())).await;
    played.say(ToAgent::Stale { attempt: ATTEMPT, epoch: EPOCH });
    gone(state.path()).await;
    assert!(!exists(pid));
    let published =
        |message: &FromAgent| matches!(message, FromAgent::Ended { .. } | FromAgent::CheckpointStored { .. });
    assert!(!played.received().iter().any(published));
    until("a beat without it", || {
        let last = played.received().into_iter().next_back();
        matches!(last, Some(FromAgent::Beat { attempts }) if attempts.is_empty()).then_some(())
    })
    .await;
    agent.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn manifests_that_lead_out_of_the_folder_are_refused() {
    let state = tempfile::tempdir().unwrap();
    let played = Played::new();
    let hash = played.add_blob(b"x");
    let agent = start_agent(state.path(), &played);
    until("the connection", || played.is_connected().then_some(())).await;
    let files = vec![FileEntry { path: "../../../escaped".into(), hash, size: Bytes(1) }];
    start_attempt(&played, Assignment { files, ..assignment("log no") });
    let Outcome::Failed { reason, message } = ended(&played).await else { panic!("it failed") };
    assert_eq!(reason, FailureReason::DataError);
    assert!(message.contains("../../../escaped"), "{message}");
    gone(state.path()).await;

    played.forget_messages();
    let files = vec![FileEntry { path: "a".into(), hash, size: Bytes(1 << 60) }];
    start_attempt(&played, Assignment { files, ..assignment("log no") });
    let Outcome::Failed { reason, message } = ended(&played).await else { panic!("it failed") };
    assert_eq!(reason, FailureReason::Infra);
    assert!(message.contains("free") && message.contains("hint:"), "{message}");
    agent.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_over_the_connection() {
    let state = tempfile::tempdir().unwrap();
    let played = Played::with_certificate_to_renew();
    let agent = start_agent(state.path(), &played);
    let certificate = until("the new certificate", || played.renewed()).await;
    assert_eq!(certificate, b"a request");
    agent.shutdown().await;
}

#[test]
fn a_state_folder_serves_one_agent_and_must_be_writable() {
    let state = tempfile::tempdir().unwrap();
    let lock = open_state(state.path()).unwrap();
    assert!(matches!(open_state(state.path()), Err(NodeError::Taken { .. })));
    drop(lock);
    open_state(state.path()).unwrap();
    let file = state.path().join("a-file");
    fs::write(&file, "").unwrap();
    let error = open_state(&file).unwrap_err();
    assert!(matches!(error, NodeError::State { .. }));
    assert!(error.to_string().contains("hint:") && error.to_string().contains("a-file"));
}
