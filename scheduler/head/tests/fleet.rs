//! A scheduler on real sockets and a real store: joining, jobs, logs, restarts.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail as loudly as the test itself")]

mod common;

use std::time::{Duration, Instant, SystemTime};

use common::{
    Agent, DOCUMENT, GIB, PATIENCE, admin, job, join_node, join_user, refusal, report, start, start_on,
    submit, token,
};
use motley_scheduler_core::artifact::{ArtifactKind, ArtifactRef, FileEntry};
use motley_scheduler_core::authorize::Role;
use motley_scheduler_core::cluster::Clocks;
use motley_scheduler_core::document::BackendKind;
use motley_scheduler_core::failure::FailureReason;
use motley_scheduler_core::id::{ContentHash, JobId};
use motley_scheduler_core::unit::{Bytes, Span};
use motley_scheduler_core::wire::agent::{
    DeviceDetails, DeviceFacts, FromAgent, NodeFacts, Outcome, ToAgent,
};
use motley_scheduler_core::wire::client::{
    FromClient, JobState, NodeState, RefusalKind, ToClient, TokenGrant,
};
use motley_scheduler_core::wire::join::Principal;
use motley_scheduler_head::HeadError;
use motley_scheduler_link::{Authority, Client, Identity, LinkError, Validity, join, scheduler_address};

#[tokio::test]
async fn first_start_writes_an_admin_identity_that_works_and_a_second_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    let head = start(folder.path()).await.unwrap();
    let identity = head.admin_identity_folder().to_owned();
    assert_eq!(identity, folder.path().join("admin"));
    assert_eq!(scheduler_address(&identity).unwrap(), head.address().to_string());
    let client = admin(&head).await;
    let status = client.request(FromClient::Status).await.unwrap();
    assert!(matches!(status, ToClient::Status(ref status) if status.jobs == 0), "{status:?}");
    let fingerprint = head.fingerprint();
    let certificate = std::fs::read(identity.join("certificate.pem")).unwrap();
    head.shutdown().await;
    let head = start(folder.path()).await.unwrap();
    assert_eq!(head.fingerprint(), fingerprint);
    assert_eq!(std::fs::read(identity.join("certificate.pem")).unwrap(), certificate);
    admin(&head).await.request(FromClient::Jobs).await.unwrap();
}

#[tokio::test]
async fn token_admits_once_in_time_and_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let head = start(folder.path()).await.unwrap();
    let address = head.address().to_string();
    let client = admin(&head).await;
    let good = token(&client, TokenGrant::Node, Span::from_seconds(60)).await;
    assert!(join(&address, &good, "host").await.is_ok());
    let again = join(&address, &good, "host").await.unwrap_err().to_string();
    assert!(again.contains("used before") && again.contains("hint:"), "{again}");
    let short = token(&client, TokenGrant::Node, Span { milliseconds: 1 }).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let late = join(&address, &short, "host").await.unwrap_err().to_string();
    assert!(late.contains("expired"), "{late}");
    let invented = motley_scheduler_link::Token::generate(&head.fingerprint()).unwrap();
    let error = join(&address, &invented, "host").await.unwrap_err();
    assert!(matches!(error, LinkError::Refused { .. }), "{error:?}");
    for valid in [Span { milliseconds: 0 }, Span::from_seconds(30 * 86_400)] {
        let asked = FromClient::CreateToken { grants: TokenGrant::Node, valid };
        assert_eq!(refusal(&client, asked).await.kind, RefusalKind::Usage);
    }
    let nodes = client.request(FromClient::Nodes).await.unwrap();
    assert!(matches!(nodes, ToClient::Nodes(ref nodes) if nodes.len() == 1), "{nodes:?}");
}

#[tokio::test]
async fn token_is_spent_once_even_when_many_present_it_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let head = start(folder.path()).await.unwrap();
    let client = admin(&head).await;
    let token = token(&client, TokenGrant::Node, Span::from_seconds(60)).await;
    let address = head.address().to_string();
    let joins: Vec<_> = (0..8)
        .map(|_| {
            let (address, token) = (address.clone(), token.clone());
            tokio::spawn(async move { join(&address, &token, "host").await.is_ok() })
        })
        .collect();
    let mut admitted = 0;
    for join in joins {
        admitted += usize::from(join.await.unwrap());
    }
    assert_eq!(admitted, 1);
}

#[tokio::test]
async fn roles_decide_what_users_may() {
    let folder = tempfile::tempdir().unwrap();
    let head = start(folder.path()).await.unwrap();
    let boss = admin(&head).await;
    let address = head.address().to_string();
    let mut users = Vec::new();
    for (name, role) in [("vic", Role::Viewer), ("sue", Role::Submitter), ("ole", Role::Operator)] {
        let identity = join_user(&head, &boss, name, role).await;
        users.push(Client::connect(&address, &identity).await.unwrap());
    }
    let [vic, sue, ole] = &users[..] else { panic!() };
    let wanted = FromClient::Submit { document: DOCUMENT.into(), files: vec![], memory: vec![GIB] };
    assert_eq!(refusal(vic, wanted).await.kind, RefusalKind::Denied);
    let (of_boss, of_sue) = (submit(&boss).await, submit(sue).await);
    let cancel = |job| FromClient::Cancel { job };
    assert_eq!(refusal(vic, cancel(of_sue)).await.kind, RefusalKind::Denied);
    assert_eq!(refusal(sue, cancel(of_boss)).await.kind, RefusalKind::Denied);
    assert_eq!(sue.request(cancel(of_sue)).await.unwrap(), ToClient::Cancelled { job: of_sue });
    assert_eq!(ole.request(cancel(of_boss)).await.unwrap(), ToClient::Cancelled { job: of_boss });
    assert_eq!(refusal(sue, cancel(JobId(99))).await.kind, RefusalKind::NotFound);
    let create = FromClient::CreateToken { grants: TokenGrant::Node, valid: Span::from_seconds(1) };
    assert_eq!(refusal(ole, create).await.kind, RefusalKind::Denied);
    assert!(matches!(vic.request(FromClient::Jobs).await.unwrap(), ToClient::Jobs(jobs) if jobs.len() == 2));
}

#[tokio::test]
async fn requests_that_cannot_be_served_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let head = start(folder.path()).await.unwrap();
    let client = admin(&head).await;
    let missing = JobId(7);
    for request in [
        FromClient::Job { job: missing },
        FromClient::Cancel { job: missing },
        FromClient::Watch { job: missing },
        FromClient::Artifacts { job: missing },
        FromClient::Logs { job: missing, attempt: None, offset: 0, follow: true },
    ] {
        assert_eq!(refusal(&client, request.clone()).await.kind, RefusalKind::NotFound, "{request:?}");
    }
    let with =
        |document: &str, files, memory| FromClient::Submit { document: document.into(), files, memory };
    assert_eq!(refusal(&client, with("version = 1\nknd = 3", vec![], vec![])).await.kind, RefusalKind::Usage);
    assert_eq!(refusal(&client, with(DOCUMENT, vec![], vec![])).await.kind, RefusalKind::Usage);
    let document = DOCUMENT.replace("a/b", "file:model");
    let path = "model.source/config.json".to_owned();
    let entry = FileEntry { path, hash: ContentHash([1; 32]), size: Bytes(3) };
    let refusal = refusal(&client, with(&document, vec![entry], vec![GIB])).await;
    assert_eq!(refusal.kind, RefusalKind::Failed, "{refusal:?}");
    assert!(refusal.message.contains("not stored"), "{refusal:?}");
}

#[tokio::test]
async fn job_runs_its_life_and_everybody_sees_it() {
    let folder = tempfile::tempdir().unwrap();
    let head = start(folder.path()).await.unwrap();
    let client = admin(&head).await;
    let id = submit(&client).await;
    assert!(job(&client, id).await.waiting.is_some());
    let mut watch = client.stream(FromClient::Watch { job: id }).await.unwrap();
    let logs = FromClient::Logs { job: id, attempt: None, offset: 0, follow: true };
    let mut logs = client.stream(logs).await.unwrap();
    let identity = join_node(&head, &client).await;
    let mut agent = Agent::connect(&head.address().to_string(), &identity, vec![]).await;
    let assignment = agent.assignment().await;
    assert_eq!((assignment.attempt.job, assignment.document.as_str()), (id, DOCUMENT));
    let (attempt, epoch) = (assignment.attempt, assignment.epoch);
    agent.running(attempt, epoch).await;
    agent.say(FromAgent::Beat { attempts: vec![report(attempt, epoch)] }).await;
    let renewed = agent.hear(|message| matches!(message, ToAgent::LeaseRenewed { .. })).await;
    assert!(matches!(renewed, ToAgent::LeaseRenewed { ref attempts, .. } if attempts == &[(attempt, epoch)]));
    for (offset, text, stored) in [(0, "hello ", 6), (0, "hello ", 6), (50, "gap", 6), (6, "world\n", 12)] {
        agent.say(FromAgent::Log { attempt, epoch, offset, bytes: text.into() }).await;
        let reply = agent.hear(|message| matches!(message, ToAgent::LogStored { .. })).await;
        assert_eq!(reply, ToAgent::LogStored { attempt, epoch, offset: stored });
    }
    let output = ArtifactRef { kind: ArtifactKind::Output, manifest: ContentHash([4; 32]) };
    let ended = FromAgent::Ended { attempt, epoch, outcome: Outcome::Succeeded, output: Some(output) };
    agent.say(FromAgent::Log { attempt, epoch, offset: 12, bytes: b"last words\n".to_vec() }).await;
    agent.say(ended).await;
    agent.hear(|message| matches!(message, ToAgent::EndRecorded { .. })).await;

    let mut text = Vec::new();
    loop {
        match logs.next().await.unwrap() {
            Some(ToClient::Log { offset, bytes, .. }) => {
                assert_eq!(offset, text.len() as u64);
                text.extend(bytes);
            }
            Some(ToClient::Done) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(String::from_utf8(text).unwrap(), "hello world\nlast words\n");
    let mut states = Vec::new();
    while let Some(ToClient::Job(view)) = watch.next().await.unwrap() {
        states.push(view.state);
    }
    assert_eq!(states.first(), Some(&JobState::Queued));
    assert_eq!(states.last(), Some(&JobState::Succeeded));
    let artifacts = client.request(FromClient::Artifacts { job: id }).await.unwrap();
    assert_eq!(artifacts, ToClient::Artifacts(vec![output]));
    let part = FromClient::Logs { job: id, attempt: Some(1), offset: 6, follow: false };
    assert!(matches!(client.request(part).await.unwrap(), ToClient::Log { offset: 6, .. }));
    let none = FromClient::Logs { job: id, attempt: Some(2), offset: 0, follow: false };
    assert_eq!(refusal(&client, none).await.kind, RefusalKind::NotFound);
}

#[tokio::test]
async fn followed_log_goes_on_with_the_next_attempt() {
    let folder = tempfile::tempdir().unwrap();
    let head = start(folder.path()).await.unwrap();
    let client = admin(&head).await;
    let id = submit(&client).await;
    let logs = FromClient::Logs { job: id, attempt: None, offset: 0, follow: true };
    let mut logs = client.stream(logs).await.unwrap();
    let identity = join_node(&head, &client).await;
    let mut agent = Agent::connect(&head.address().to_string(), &identity, vec![]).await;
    for (text, outcome) in [
        ("first", Outcome::Failed { reason: FailureReason::Infra, message: "disk".into() }),
        ("second", Outcome::Succeeded),
    ] {
        let assignment = agent.assignment().await;
        let (attempt, epoch) = (assignment.attempt, assignment.epoch);
        agent.running(attempt, epoch).await;
        agent.say(FromAgent::Log { attempt, epoch, offset: 0, bytes: text.into() }).await;
        agent.say(FromAgent::Ended { attempt, epoch, outcome, output: None }).await;
    }
    let mut heard = Vec::new();
    while let Some(ToClient::Log { attempt, offset, bytes }) = logs.next().await.unwrap() {
        heard.push((attempt.number, offset, String::from_utf8(bytes).unwrap()));
    }
    assert_eq!(heard, [(1, 0, "first".to_owned()), (2, 0, "second".to_owned())]);
}

#[tokio::test]
async fn nothing_is_forgotten_by_a_scheduler_that_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let head = start(folder.path()).await.unwrap();
    let port = head.address().port();
    let client = admin(&head).await;
    let identity = join_node(&head, &client).await;
    let mut agent = Agent::connect(&head.address().to_string(), &identity, vec![]).await;
    let running = submit(&client).await;
    let assignment = agent.assignment().await;
    let (attempt, epoch) = (assignment.attempt, assignment.epoch);
    agent.running(attempt, epoch).await;
    agent.say(FromAgent::Log { attempt, epoch, offset: 0, bytes: b"before".to_vec() }).await;
    agent.hear(|message| matches!(message, ToAgent::LogStored { .. })).await;
    let mut waiting = Vec::new();
    for _ in 0..20 {
        waiting.push(submit(&client).await);
    }
    let unused = token(&client, TokenGrant::Node, Span::from_seconds(600)).await;
    let before = client.request(FromClient::Jobs).await.unwrap();
    let ToClient::Jobs(before) = before else { panic!() };
    drop(head);

    let head = loop {
        match start_on(folder.path(), port, Clocks::default()).await {
            Ok(head) => break head,
            // The port is free as soon as the kernel has noticed.
            Err(HeadError::Link(LinkError::Listen { .. })) => {
                tokio::time::sleep(Duration::from_millis(20)).await
            }
            Err(error) => panic!("{error}"),
        }
    };
    let client = admin(&head).await;
    // The agent kept its attempt, says so, and the job goes on as if nothing had been.
    let mut agent =
        Agent::connect(&head.address().to_string(), &identity, vec![report(attempt, epoch)]).await;
    agent.hear(|message| matches!(message, ToAgent::LeaseRenewed { .. })).await;
    let ToClient::Jobs(after) = client.request(FromClient::Jobs).await.unwrap() else { panic!() };
    let facts = |jobs: &[motley_scheduler_core::wire::client::JobView]| -> Vec<_> {
        jobs.iter()
            .map(|job| (job.job, job.state, job.submitted, job.started, job.attempts.clone()))
            .collect()
    };
    assert_eq!(facts(&after), facts(&before));
    assert_eq!(job(&client, running).await.state, JobState::Running);
    agent.say(FromAgent::Log { attempt, epoch, offset: 0, bytes: b"before and after".to_vec() }).await;
    agent.hear(|message| matches!(message, ToAgent::LogStored { offset: 16, .. })).await;
    assert!(
        join(&head.address().to_string(), &unused, "later").await.is_ok(),
        "tokens outlive the scheduler"
    );
}

#[tokio::test]
async fn certificate_is_renewed_over_the_agents_own_connection() {
    let folder = tempfile::tempdir().unwrap();
    let head = start(folder.path()).await.unwrap();
    let client = admin(&head).await;
    let old = join_node(&head, &client).await;
    let address = head.address().to_string();
    let mut agent = Agent::connect(&address, &old, vec![]).await;
    let pending = Identity::request().unwrap();
    let certificate_request = pending.request_der().to_vec();
    agent.say(FromAgent::RenewCertificate { certificate_request }).await;
    let reply = agent.hear(|message| matches!(message, ToAgent::Certificate { .. })).await;
    let ToAgent::Certificate { certificate, valid_seconds } = reply else { panic!() };
    assert_eq!(valid_seconds, 24 * 3600);
    let new = pending.finish(&certificate, old.authority()).unwrap();
    assert_eq!(new.principal(), old.principal());
    assert!(new.renew_at() > SystemTime::now() + Duration::from_secs(14 * 3600));
    let mut again = Agent::connect(&address, &new, vec![]).await;
    assert_eq!(again.node, agent.node);
    // The newer connection has taken over: the older one is closed.
    assert!(matches!(agent.link.closed().await, LinkError::Closed { .. }));
    again.say(FromAgent::RenewCertificate { certificate_request: vec![0; 100] }).await;
    again.hear(|message| matches!(message, ToAgent::Refused { .. })).await;
}

#[tokio::test]
async fn silent_agent_is_suspect_then_lost_and_its_job_goes_elsewhere() {
    let clocks = Clocks {
        beat: Span::from_seconds(1),
        // Wide enough to be looked at while either lasts.
        suspect_after: Span::from_seconds(6),
        lost_after: Span::from_seconds(14),
        grace_after_start: Span { milliseconds: 0 },
        lease: Span::from_seconds(10),
        ..Clocks::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let head = start_on(folder.path(), 0, clocks).await.unwrap();
    let client = admin(&head).await;
    let address = head.address().to_string();
    let silent = join_node(&head, &client).await;
    let mut agent = Agent::connect(&address, &silent, vec![]).await;
    let id = submit(&client).await;
    let first = agent.assignment().await;
    agent.running(first.attempt, first.epoch).await;
    let mut seen = Vec::new();
    let begun = Instant::now();
    while seen.last() != Some(&NodeState::Lost) {
        assert!(begun.elapsed() < PATIENCE, "{seen:?}");
        let ToClient::Nodes(nodes) = client.request(FromClient::Nodes).await.unwrap() else { panic!() };
        if seen.last() != Some(&nodes[0].state) {
            seen.push(nodes[0].state);
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    assert_eq!(seen, [NodeState::Ready, NodeState::Suspect, NodeState::Lost]);
    assert_eq!(job(&client, id).await.state, JobState::Queued);
}

#[tokio::test]
async fn connection_ends_with_its_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let head = start(folder.path()).await.unwrap();
    let authority = Authority::load(&folder.path().join("authority")).unwrap().unwrap();
    let principal = Principal::User { name: "ada".into(), role: Role::Viewer };
    // Certificates end on whole seconds.
    let validity = Validity::starting(SystemTime::now(), Duration::from_secs(12));
    let identity = authority.issue(&principal, validity).unwrap();
    let address = head.address().to_string();
    let client = Client::connect(&address, &identity).await.unwrap();
    client.request(FromClient::Jobs).await.unwrap();
    let end = tokio::time::timeout(PATIENCE, client.closed()).await.unwrap();
    assert!(end.to_string().contains("expired"), "{end}");
    // Its last second counts as valid.
    let begun = Instant::now();
    let error = loop {
        match Client::connect(&address, &identity).await {
            Ok(_) => assert!(begun.elapsed() < PATIENCE, "the certificate never ends"),
            Err(error) => break error.to_string(),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(error.contains("expired"), "{error}");
}

/// Says how long a job that fits waits for its place. Run with `--ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn measure_submission_to_start() {
    let folder = tempfile::tempdir().unwrap();
    let head = start(folder.path()).await.unwrap();
    let client = admin(&head).await;
    let identity = join_node(&head, &client).await;
    let mut agent = Agent::connect(&head.address().to_string(), &identity, vec![]).await;
    let mut times = Vec::new();
    for _ in 0..300 {
        let begun = Instant::now();
        let (_, assignment) = tokio::join!(submit(&client), agent.assignment());
        times.push(begun.elapsed());
        let (attempt, epoch) = (assignment.attempt, assignment.epoch);
        agent.say(FromAgent::Ended { attempt, epoch, outcome: Outcome::Succeeded, output: None }).await;
        agent.hear(|message| matches!(message, ToAgent::EndRecorded { .. })).await;
    }
    times.sort_unstable();
    eprintln!("submit to start: p50 {:?}, p99 {:?}, worst {:?}", times[150], times[297], times[299]);
}

#[tokio::test]
async fn devices_of_one_node_are_leased_each_by_itself_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let head = start(folder.path()).await.unwrap();
    let port = head.address().port();
    let client = admin(&head).await;
    let identity = join_node(&head, &client).await;
    let address = head.address().to_string();
    let device = |index: u32, backend: BackendKind| DeviceFacts {
        index,
        backend,
        name: "card".into(),
        memory: Bytes(GIB.0 * 3 / 2),
    };
    let details = |index: u32, backend_index: u32, speed: u64| DeviceDetails {
        index,
        backend_index,
        driver: "1".into(),
        capability: "any".into(),
        precisions: vec!["f32".into()],
        is_software: false,
        same_card: None,
        gemm: Some(speed),
        nf4: None,
        bandwidth: None,
    };
    let devices =
        vec![device(0, BackendKind::Cpu), device(1, BackendKind::Cuda), device(2, BackendKind::Cuda)];
    let details = vec![details(0, 0, 1), details(1, 0, 100), details(2, 1, 90)];
    let report = |attempts| {
        let (devices, details) = (devices.clone(), details.clone());
        let facts = NodeFacts {
            name: "host".into(),
            boot: "boot".into(),
            build: "0".into(),
            devices,
            cores: 4,
            memory: Bytes(16 << 30),
        };
        FromAgent::ReportDevices { facts, details, attempts }
    };
    let mut agent = Agent::connect_reporting(&address, &identity, report(vec![])).await;
    // Each has room for one job: the fastest first; the processor is the last that `auto` takes.
    let mut leased = Vec::new();
    let mut attempts = Vec::new();
    for _ in 0..3 {
        submit(&client).await;
        let assignment = agent.assignment().await;
        leased.push((assignment.device, assignment.backend));
        agent.running(assignment.attempt, assignment.epoch).await;
        attempts.push(common::report(assignment.attempt, assignment.epoch));
    }
    assert_eq!(leased, [(1, BackendKind::Cuda), (2, BackendKind::Cuda), (0, BackendKind::Cpu)]);
    let waits = submit(&client).await;
    let told = client.request(FromClient::Devices).await.unwrap();
    assert_eq!(told, ToClient::Devices(vec![(agent.node, details.clone())]));
    head.shutdown().await;

    let head = start_on(folder.path(), port, Clocks::default()).await.unwrap();
    let client = admin(&head).await;
    assert_eq!(client.request(FromClient::Devices).await.unwrap(), told, "devices are in the journal");
    let mut agent = Agent::connect_reporting(&address, &identity, report(attempts.clone())).await;
    agent.hear(|message| matches!(message, ToAgent::LeaseRenewed { .. })).await;
    assert_eq!(job(&client, waits).await.state, JobState::Queued);
    // The card that comes free is the one that the waiting job gets.
    let (attempt, epoch) = (attempts[1].attempt, attempts[1].epoch);
    let outcome = Outcome::Failed { reason: FailureReason::UserError, message: "enough".into() };
    agent.say(FromAgent::Ended { attempt, epoch, outcome, output: None }).await;
    let assignment = agent.assignment().await;
    assert_eq!((assignment.attempt.job, assignment.device), (waits, 2));
}
