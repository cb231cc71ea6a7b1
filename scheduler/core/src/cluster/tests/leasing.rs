//! Leases, retries, checkpoints, stale words.

use super::*;

#[test]
fn beat_renews_the_leases_that_hold() {
    let mut fleet = Fleet::of(&[8]);
    let (_, actions) = fleet.submit();
    let (node, start) = one_start(&actions);
    let run = fleet.run(&start, node);
    let mut stale = run.clone();
    stale.epoch = Epoch(77);
    let actions = fleet.say(node, FromAgent::Beat { attempts: vec![run, stale] });
    let renewed =
        ToAgent::LeaseRenewed { attempts: vec![(start.attempt, start.epoch)], lease: Span::from_seconds(30) };
    assert!(told(&actions, node, &renewed), "{actions:?}");
    assert!(told(&actions, node, &ToAgent::Stale { attempt: start.attempt, epoch: Epoch(77) }));
}

#[test]
fn new_attempt_continues_from_the_newest_checkpoint_elsewhere() {
    let mut fleet = Fleet::of(&[4, 4]);
    let (job, actions) = fleet.submit();
    let (node, start) = one_start(&actions);
    fleet.run(&start, node);
    for (step, byte) in [(100, 1), (200, 2), (200, 2), (300, 3)] {
        let artifact = artifact(ArtifactKind::Checkpoint { step }, byte);
        let (attempt, epoch) = (start.attempt, start.epoch);
        fleet.say(node, FromAgent::CheckpointStored { attempt, epoch, artifact });
    }
    let recorded = |fleet: &Fleet| fleet.journal.iter().filter(|c| c.name() == "CheckpointRecorded").count();
    assert_eq!(recorded(&fleet), 3);
    let newest = artifact(ArtifactKind::Checkpoint { step: 300 }, 3);
    for (artifact, count) in [
        (artifact(ArtifactKind::Checkpoint { step: 250 }, 9), 3),
        (artifact(ArtifactKind::Output, 9), 3),
        (newest, 3),
    ] {
        let (attempt, epoch) = (start.attempt, start.epoch);
        fleet.say(node, FromAgent::CheckpointStored { attempt, epoch, artifact });
        assert_eq!(recorded(&fleet), count);
    }
    let kept = vec![artifact(ArtifactKind::Checkpoint { step: 200 }, 2), newest];
    assert_eq!(fleet.cluster.artifacts(job), Some(kept));
    fleet.end(node, &start, failed(FailureReason::RunnerLost));
    let view = fleet.view(job);
    assert_eq!(view.state, JobState::Queued);
    assert_eq!(view.waiting.unwrap(), "pauses for 1s after runner_lost");
    let (other, again) = one_start(&fleet.wait(1));
    assert_eq!((node, other), (NodeId(1), NodeId(2)));
    assert_eq!((again.attempt.number, again.epoch, again.resume), (2, Epoch(2), Some(newest)));
    assert_eq!(fleet.view(job).attempts[1].resumed_from, Some(300));
}

#[test]
fn same_node_is_taken_when_no_other_fits() {
    let mut fleet = Fleet::of(&[4, 3]);
    let (_, actions) = fleet.submit();
    let (node, start) = one_start(&actions);
    fleet.end(node, &start, failed(FailureReason::DeviceFault));
    assert_eq!(one_start(&fleet.wait(1)).0, node);
}

#[test]
fn retry_classes_decide_what_follows_a_failure() {
    for reason in FailureReason::ALL {
        let mut fleet = Fleet::of(&[4]);
        let (job, actions) = fleet.submit();
        let (node, mut start) = one_start(&actions);
        let mut attempts = 1;
        loop {
            fleet.end(node, &start, failed(reason));
            if fleet.view(job).state == JobState::Failed {
                break;
            }
            let mut actions = fleet.wait_beating(17, &[(node, vec![])]);
            actions.retain(|action| matches!(action, Action::SendAgent { message: ToAgent::Start(_), .. }));
            start = one_start(&actions).1;
            attempts += 1;
        }
        let expected = match reason.retry() {
            crate::failure::RetryClass::Never => 1,
            crate::failure::RetryClass::Once => 2,
            crate::failure::RetryClass::Elsewhere => 6,
        };
        assert_eq!(attempts, expected, "{reason}");
        let view = fleet.view(job);
        assert_eq!(view.reason, Some(reason));
        let message = view.message.unwrap();
        assert!(message.ends_with("what, where, remedy"));
        assert_eq!(message.starts_with("given up after 5 retries within an hour"), expected == 6);
    }
}

#[test]
fn retries_of_another_hour_do_not_count() {
    let mut fleet = Fleet::of(&[4]);
    let (job, actions) = fleet.submit();
    let (node, mut start) = one_start(&actions);
    for _ in 0..20 {
        fleet.end(node, &start, failed(FailureReason::RunnerLost));
        start = one_start(&fleet.wait(1)).1;
        let run = fleet.run(&start, node);
        fleet.wait_beating(3600, &[(node, vec![run])]);
    }
    assert_eq!(fleet.view(job).state, JobState::Running);
}

#[test]
fn attempt_that_stops_unasked_is_tried_again() {
    let mut fleet = Fleet::of(&[4]);
    let (job, actions) = fleet.submit();
    let (node, start) = one_start(&actions);
    fleet.end(node, &start, Outcome::Cancelled);
    assert_eq!(fleet.view(job).attempts[0].reason, Some(FailureReason::Preempted));
    assert_eq!(one_start(&fleet.wait(1)).1.attempt.number, 2);
}

#[test]
fn long_messages_are_cut_between_characters() {
    let mut fleet = Fleet::of(&[4]);
    let (job, actions) = fleet.submit();
    let (node, start) = one_start(&actions);
    let outcome = Outcome::Failed { reason: FailureReason::DataError, message: "é€".repeat(3000) };
    fleet.end(node, &start, outcome);
    let message = fleet.view(job).message.unwrap();
    assert!((4090..=4096).contains(&message.len()), "{}", message.len());
}

#[test]
fn stale_words_change_nothing() {
    let mut fleet = Fleet::of(&[4, 4]);
    let (job, actions) = fleet.submit();
    let (node, start) = one_start(&actions);
    fleet.run(&start, node);
    let before = fleet.journal.len();
    let (attempt, epoch) = (start.attempt, start.epoch);
    let stale = artifact(ArtifactKind::Checkpoint { step: 1 }, 1);
    let unknown = AttemptId { job, number: 9 };
    for (from, attempt, epoch) in [
        (node, attempt, Epoch(9)),
        (node, unknown, epoch),
        (node, AttemptId { job: JobId(9), number: 1 }, epoch),
        (node, AttemptId { job, number: 0 }, epoch),
        // The right lease, told by a node that does not hold it.
        (NodeId(2), attempt, epoch),
    ] {
        let report = AttemptReport { attempt, epoch, phase: AttemptPhase::Running, endpoint: None };
        for message in [
            FromAgent::Attempt(report),
            FromAgent::Progress { attempt, epoch, progress: Default::default() },
            FromAgent::CheckpointStored { attempt, epoch, artifact: stale },
            FromAgent::Ended { attempt, epoch, outcome: Outcome::Succeeded, output: Some(stale) },
        ] {
            let actions = fleet.say(from, message.clone());
            assert!(told(&actions, from, &ToAgent::Stale { attempt, epoch }), "{message:?} {actions:?}");
        }
        let log = FromAgent::Log { attempt, epoch, offset: 0, bytes: vec![1] };
        assert!(fleet.say(from, log).is_empty());
    }
    assert_eq!(fleet.journal.len(), before);
    assert_eq!(fleet.view(job).state, JobState::Running);
}

#[test]
fn repeated_end_is_answered_and_changes_nothing() {
    let mut fleet = Fleet::of(&[4]);
    let (_, actions) = fleet.submit();
    let (node, start) = one_start(&actions);
    fleet.end(node, &start, Outcome::Succeeded);
    let before = fleet.journal.len();
    let recorded = ToAgent::EndRecorded { attempt: start.attempt, epoch: start.epoch };
    let actions = fleet.end(node, &start, Outcome::Succeeded);
    assert_eq!(actions, [Action::SendAgent { node, message: recorded.clone() }]);
    // An agent that was away when the end was recorded still has it on its list.
    let run = report(&start, AttemptPhase::Ended);
    assert!(told(&fleet.report(node, 4, &[run]), node, &recorded));
    assert_eq!(fleet.journal.len(), before);
}

#[test]
fn log_lines_of_an_ended_attempt_are_kept() {
    let mut fleet = Fleet::of(&[4]);
    let (_, actions) = fleet.submit();
    let (node, start) = one_start(&actions);
    fleet.end(node, &start, Outcome::Succeeded);
    let (attempt, epoch) = (start.attempt, start.epoch);
    let log = FromAgent::Log { attempt, epoch, offset: 3, bytes: vec![1] };
    assert!(matches!(fleet.say(node, log)[..], [Action::AppendLog { offset: 3, .. }]));
}

/// Two cards of one node, the first also as a device of another backend, and a software adapter.
fn several(node: &str) -> FromAgent {
    let device = |index, backend, gib: u64| DeviceFacts {
        index,
        backend,
        name: "device".into(),
        memory: Bytes(gib * GIB),
    };
    let devices = vec![
        device(0, BackendKind::Cuda, 8),
        device(1, BackendKind::Cuda, 6),
        device(2, BackendKind::Cpu, 16),
        device(3, BackendKind::Wgpu, 8),
        device(4, BackendKind::Wgpu, 16),
    ];
    let backend_indices = [0, 1, 0, 0, 1];
    let details = devices.iter().zip(backend_indices).map(|(device, backend_index)| DeviceDetails {
        index: device.index,
        backend_index,
        driver: "driver".into(),
        capability: "capability".into(),
        precisions: vec!["f32".into()],
        is_software: device.index == 4,
        same_card: [Some(3), None, None, Some(0), None][device.index as usize],
        gemm: Some([400, 500, 1, 100, 2000][device.index as usize]),
        nf4: None,
        bandwidth: None,
    });
    let details = details.collect();
    let facts = NodeFacts { name: node.into(), devices, ..facts(8) };
    FromAgent::ReportDevices { facts, details, attempts: vec![] }
}

#[test]
fn each_device_of_a_node_has_its_own_memory_and_leases() {
    let mut fleet = Fleet::of(&[]);
    let node = fleet.join();
    fleet.event(Event::AgentConnected { node });
    fleet.say(node, several("machine"));
    let chosen = |resources: &str| DOCUMENT.replace("[resources]", &format!("[resources]\n{resources}"));
    let leased = |fleet: &mut Fleet, resources: &str| {
        let (job, actions) = fleet.submit_text(&chosen(resources));
        let start = starts(&actions);
        match start.first() {
            Some((_, start)) => (job, Ok((start.device, start.backend))),
            None => (job, Err(fleet.view(job).waiting.unwrap())),
        }
    };
    use BackendKind::{Cpu, Cuda, Wgpu};
    // 4 GiB each: the fastest first, then half of its speed against the other card.
    assert_eq!(leased(&mut fleet, "backend = \"auto\"").1, Ok((1, Cuda)));
    assert_eq!(leased(&mut fleet, "backend = \"auto\"").1, Ok((0, Cuda)));
    // The same card by another name has what is left of it.
    assert_eq!(leased(&mut fleet, "backend = \"wgpu\"").1, Ok((3, Wgpu)));
    let (waiting, why) = leased(&mut fleet, "backend = \"cuda\"\ndevice = [0, 1]");
    let why = why.unwrap_err();
    assert_eq!(why, "needs 4GiB on one cuda 0 or 1 device, at most 2GiB are free (cuda 1 of node 1)");
    fleet.cancel(waiting);
    assert_eq!(leased(&mut fleet, "backend = \"auto\"").1, Ok((2, Cpu)));
    // A software adapter by its name and index.
    assert_eq!(leased(&mut fleet, "backend = \"wgpu\"\ndevice = 1").1, Ok((4, Wgpu)));
    let devices = fleet.cluster.nodes().remove(0).devices;
    let taken: Vec<u64> = devices.iter().map(|device| device.memory_leased.0 / GIB).collect();
    assert_eq!(taken, [4, 4, 4, 4, 4]);
    fleet.restart();
    fleet.event(Event::AgentConnected { node });
    assert_eq!(fleet.cluster.nodes().remove(0).devices, devices, "devices and choices are in the journal");
}

#[test]
fn a_report_without_details_is_that_of_an_older_agent() {
    let mut fleet = Fleet::of(&[]);
    let node = fleet.join();
    fleet.event(Event::AgentConnected { node });
    fleet.say(node, several("machine"));
    fleet.event(Event::AgentDisconnected { node });
    fleet.report(node, 8, &[]);
    let (_, actions) = fleet.submit();
    assert_eq!(one_start(&actions).1.device, 0);
    let names: Vec<_> =
        fleet.journal.iter().map(Change::name).filter(|name| name.contains("Reported")).collect();
    assert_eq!(names, ["NodeReported", "DevicesReported", "NodeReported"]);
}
