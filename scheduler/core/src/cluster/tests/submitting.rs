//! Submitting, waiting and cancelling.

use super::*;

#[test]
fn job_that_fits_is_leased_with_its_submission() {
    let mut fleet = Fleet::of(&[8]);
    let before = fleet.journal.len();
    let (job, actions) = fleet.submit();
    let names: Vec<_> = fleet.journal[before..].iter().map(Change::name).collect();
    assert_eq!(names, ["JobAdded", "ChoiceAdded", "AttemptLeased"]);
    let (node, start) = one_start(&actions);
    assert_eq!((node, start.attempt, start.epoch), (NodeId(1), AttemptId { job, number: 1 }, Epoch(1)));
    assert_eq!((start.document.as_str(), start.resume), (DOCUMENT, None));
    assert_eq!(start.files, [file("data.train/train.jsonl")]);
    assert_eq!(fleet.view(job).state, JobState::Placing);
    fleet.say(node, FromAgent::Attempt(report(&start, AttemptPhase::Prepared)));
    assert_eq!(fleet.view(job).state, JobState::Starting);
    fleet.run(&start, node);
    assert_eq!(fleet.view(job).state, JobState::Running);
    let actions = fleet.end(node, &start, Outcome::Succeeded);
    assert!(told(&actions, node, &ToAgent::EndRecorded { attempt: start.attempt, epoch: start.epoch }));
    let view = fleet.view(job);
    assert_eq!((view.state, view.output), (JobState::Succeeded, Some(artifact(ArtifactKind::Output, 9))));
    assert_eq!(fleet.cluster.nodes()[0].devices[0].memory_leased, Bytes(0));
    assert_eq!(fleet.cluster.owner(job), Some("ada"));
}

#[test]
fn job_waits_when_no_device_has_the_memory() {
    let mut fleet = Fleet::new();
    let (job, actions) = fleet.submit();
    assert!(starts(&actions).is_empty());
    assert_eq!(fleet.view(job).waiting.unwrap(), "no node is ready");
    let node = fleet.join();
    fleet.report(node, 3, &[]);
    assert_eq!(
        fleet.view(job).waiting.unwrap(),
        "needs 4GiB on one cuda or wgpu or cpu device, the largest has 3GiB (cuda 0 of node 1)"
    );
    let node = fleet.join();
    let actions = fleet.report(node, 5, &[]);
    assert_eq!(one_start(&actions).0, node);
    let (second, actions) = fleet.submit();
    assert!(starts(&actions).is_empty());
    assert_eq!(
        fleet.view(second).waiting.unwrap(),
        "needs 4GiB on one cuda or wgpu or cpu device, at most 3GiB are free (cuda 0 of node 1)"
    );
}

#[test]
fn places_go_to_the_urgent_then_to_the_old() {
    let mut fleet = Fleet::of(&[4]);
    let (first, actions) = fleet.submit();
    let (node, mut start) = one_start(&actions);
    let (second, _) = fleet.submit();
    let (third, _) = fleet.submit();
    let (urgent, _) = fleet.submit_text(&DOCUMENT.replace("name =", "priority = \"urgent\"\nname ="));
    let mut order = vec![first];
    for _ in 0..3 {
        let actions = fleet.end(node, &start, Outcome::Succeeded);
        start = one_start(&actions).1;
        order.push(start.attempt.job);
    }
    assert_eq!(order, [first, urgent, second, third]);
}

#[test]
fn submission_refuses_what_does_not_match() {
    let check = |document: &str, files: &[&str], memory: &[u64], said: &str| {
        let files = files.iter().map(|path| file(path)).collect();
        let memory = memory.iter().map(|size| Bytes(size * GIB)).collect();
        let refusal = Submission::new(document.into(), files, memory, "ada").unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::Usage);
        let text = format!("{} {}", refusal.message, refusal.hint.unwrap_or_default());
        assert!(text.contains(said), "{text}");
    };
    let data = "data.train/train.jsonl";
    check("version = ", &[], &[], "line 1");
    check(&DOCUMENT.replace("keep", "kep"), &[data], &[4], "did you mean `checkpoint.keep`?");
    check(DOCUMENT, &[], &[4], "`data.train` names `train.jsonl`, which was not uploaded");
    check(DOCUMENT, &[data, "x/y"], &[4], "`x/y` was uploaded, but the document does not name it");
    check(DOCUMENT, &[data, data], &[4], "listed twice");
    for path in ["../x", "/etc/x", "a//b", "", "a/./b", "a\\b"] {
        check(DOCUMENT, &[data, path], &[4], "is no path of an input folder");
    }
    check(DOCUMENT, &[data], &[], "0 memory figures for 1 alternatives");
    check(DOCUMENT, &[data], &[5], "does not go with `resources.memory`");
    let gang = DOCUMENT.replace("[resources]", "[resources]\ndevices = \"2..8\"");
    check(&gang, &[data], &[4], "the job asks for 2 devices, one is supported now set `devices = 1`");
    let path = format!("model.source/{}", "x".repeat(1000));
    let many: Vec<String> = (0..4000).map(|index| format!("{path}{index:04}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    check(DOCUMENT, &many, &[4], "document and list of 4000 files take 4.1MiB, 3MiB are allowed");
}

#[test]
fn job_waits_for_the_result_that_it_names() {
    let mut fleet = Fleet::of(&[64]);
    let (first, actions) = fleet.submit();
    let (node, start) = one_start(&actions);
    let needs_first = DOCUMENT.replace("a/b", "job:1");
    let (second, actions) = fleet.submit_text(&needs_first);
    assert!(starts(&actions).is_empty());
    assert_eq!(fleet.view(second).waiting.unwrap(), "needs the result of job 1");
    let actions = fleet.end(node, &start, Outcome::Succeeded);
    let (_, start) = one_start(&actions);
    assert_eq!(start.inputs, [(first, ContentHash([9; 32]))]);

    // An input without a result ends the jobs behind it, however long the chain.
    let (third, actions) = fleet.submit();
    let (_, start) = one_start(&actions);
    let (fourth, _) = fleet.submit_text(&DOCUMENT.replace("a/b", "job:3"));
    let urgent = DOCUMENT.replace("a/b", "job:4").replace("name =", "priority = \"urgent\"\nname =");
    let (fifth, _) = fleet.submit_text(&urgent);
    fleet.end(node, &start, failed(FailureReason::DataError));
    for job in [third, fourth, fifth] {
        assert_eq!(fleet.view(job).state, JobState::Failed, "{job}");
    }
    assert_eq!(fleet.view(fifth).message.unwrap(), "job 4, whose result this one needs, left none");
}

#[test]
fn submission_that_names_an_impossible_input_is_refused() {
    let mut fleet = Fleet::of(&[64]);
    let (job, _) = fleet.submit();
    fleet.cancel(job);
    let files = vec![file("data.train/train.jsonl")];
    for (input, kind) in [("job:1", None), ("job:9", Some(RefusalKind::NotFound))] {
        let text = DOCUMENT.replace("a/b", input);
        let submission = Submission::new(text, files.clone(), vec![Bytes(4 * GIB)], "ada").unwrap();
        let actions = fleet.event(Event::JobSubmitted { ticket: Ticket(0), submission });
        match kind {
            // The stop was asked for, but the end is not there yet.
            None => assert!(matches!(actions[0], Action::Submitted { .. })),
            Some(kind) => assert_eq!(refusal(&actions).kind, kind),
        }
    }
}

#[test]
fn cancel_works_in_every_state() {
    let mut fleet = Fleet::of(&[4]);
    let (running, actions) = fleet.submit();
    let (node, start) = one_start(&actions);
    let (queued, _) = fleet.submit();
    let actions = fleet.cancel(queued);
    assert!(matches!(actions[..], [Action::JobChanged { .. }, Action::Cancelled { .. }]), "{actions:?}");
    assert_eq!(fleet.view(queued).state, JobState::Cancelled);

    let run = fleet.run(&start, node);
    let stop = ToAgent::Stop { attempt: start.attempt, epoch: start.epoch, grace: Span::from_seconds(30) };
    assert!(told(&fleet.cancel(running), node, &stop));
    assert_eq!(fleet.view(running).state, JobState::Running);
    // Asked once more when the attempt goes on, and after the agent was away.
    let actions = fleet.wait_beating(31, &[(node, vec![run.clone()])]);
    assert!(told(&actions, node, &stop));
    fleet.event(Event::AgentDisconnected { node });
    assert!(told(&fleet.report(node, 4, &[run]), node, &stop));
    fleet.end(node, &start, Outcome::Cancelled);
    assert_eq!(fleet.view(running).state, JobState::Cancelled);

    assert!(matches!(fleet.cancel(running)[..], [Action::Cancelled { .. }]));
    assert_eq!(refusal(&fleet.cancel(JobId(99))).kind, RefusalKind::NotFound);
    let (done, actions) = fleet.submit();
    fleet.end(node, &one_start(&actions).1, Outcome::Succeeded);
    assert_eq!(refusal(&fleet.cancel(done)).message, format!("job {done} has already succeeded"));
}

#[test]
fn cancelled_job_is_not_tried_again() {
    for reason in FailureReason::ALL {
        let mut fleet = Fleet::of(&[4]);
        let (job, actions) = fleet.submit();
        let (node, start) = one_start(&actions);
        fleet.run(&start, node);
        fleet.cancel(job);
        fleet.end(node, &start, failed(reason));
        assert_eq!(fleet.view(job).state, JobState::Cancelled, "{reason}");
    }
    // Finished before it heard of it.
    let mut fleet = Fleet::of(&[4]);
    let (job, actions) = fleet.submit();
    fleet.cancel(job);
    fleet.end(NodeId(1), &one_start(&actions).1, Outcome::Succeeded);
    assert_eq!(fleet.view(job).state, JobState::Succeeded);
}
