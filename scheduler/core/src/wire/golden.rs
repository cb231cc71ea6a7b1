//! Pins the bytes of every message and every change: a variant that moves, or a field that changes, fails here.
//!
//! `golden/messages.txt` has a line a variant. New variants go to the end of their enum and to the end of that file;
//! no line is ever changed, because journals and agents of the last version hold such bytes.

use super::agent::*;
use super::bulk::*;
use super::client::*;
use super::codec::{Limit, decode, encode};
use super::hello::*;
use super::join::*;
use crate::artifact::{ArtifactKind, ArtifactRef, FileEntry};
use crate::authorize::Role;
use crate::cluster::{Change, Submission};
use crate::document::{BackendKind, Choice, DeviceCount, Memory, Priority, Resources};
use crate::failure::FailureReason;
use crate::id::{AttemptId, ContentHash, Epoch, JobId, NodeId};
use crate::unit::{Bytes, Moment, Span};

const GOLDEN: &str = include_str!("../../golden/messages.txt");

const ATTEMPT: AttemptId = AttemptId { job: JobId(300), number: 2 };
const EPOCH: Epoch = Epoch(70_000);
const HASH: ContentHash = ContentHash([0xA5; 32]);
const CHECKPOINT: ArtifactRef =
    ArtifactRef { kind: ArtifactKind::Checkpoint { step: 200 }, manifest: ContentHash([1; 32]) };
const OUTPUT: ArtifactRef = ArtifactRef { kind: ArtifactKind::Output, manifest: ContentHash([2; 32]) };
const SECOND: Span = Span::from_seconds(1);

/// Checks samples of one enum against the file. The match is exhaustive, so a new variant does not compile before
/// it stands here, and has to have a sample.
macro_rules! check {
    ($type:ident { $($variant:ident),* $(,)? }, $limit:expr, $samples:expr) => {{
        let name = |value: &$type| match value { $($type::$variant { .. } => stringify!($variant)),* };
        let samples: Vec<$type> = $samples;
        for variant in [$(stringify!($variant)),*] {
            assert!(samples.iter().any(|sample| name(sample) == variant), "no sample of {variant}");
        }
        for sample in &samples {
            check_bytes(&format!("{}::{}", stringify!($type), name(sample)), sample, $limit);
        }
    }};
}

fn check_bytes<T>(name: &str, sample: &T, limit: Limit)
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let bytes = encode(sample, limit).unwrap();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let pinned = GOLDEN.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    assert_eq!(
        pinned,
        Some(hex.as_str()),
        "bytes of a new variant go to the end of the file:\n{name} {hex}\n"
    );
    assert_eq!(decode::<T>(&bytes, limit).as_ref(), Ok(sample));
    for end in 0..bytes.len() {
        assert!(decode::<T>(&bytes[..end], limit).is_err(), "{name} cut after {end} bytes");
    }
    assert!(decode::<T>(&[&bytes[..], &[0]].concat(), limit).is_err(), "{name} with a byte too many");
}

fn file() -> FileEntry {
    FileEntry { path: "data.train/train.jsonl".into(), hash: HASH, size: Bytes(1000) }
}

fn facts() -> NodeFacts {
    let device =
        DeviceFacts { index: 1, backend: BackendKind::Cpu, name: "EPYC".into(), memory: Bytes(1 << 34) };
    NodeFacts {
        name: "node".into(),
        boot: "b".into(),
        build: "0.1.0".into(),
        devices: vec![device],
        cores: 8,
        memory: Bytes(1 << 35),
    }
}

fn details() -> DeviceDetails {
    DeviceDetails {
        index: 1,
        backend_index: 0,
        driver: "d".into(),
        capability: "x86_64".into(),
        precisions: vec!["f32".into()],
        is_software: true,
        same_card: Some(2),
        gemm: Some(1 << 40),
        nf4: None,
        bandwidth: Some(1 << 33),
    }
}

fn attempt_report(phase: AttemptPhase) -> AttemptReport {
    AttemptReport { attempt: ATTEMPT, epoch: EPOCH, phase, endpoint: Some("127.0.0.1:8080".into()) }
}

fn progress() -> Progress {
    Progress {
        activity: "training".into(),
        done: 3,
        total: Some(500),
        unit: "step".into(),
        loss: Some(0.25),
        tokens_per_second: None,
        seconds_left: Some(1.5),
    }
}

fn failed() -> Outcome {
    Outcome::Failed { reason: FailureReason::Numerics, message: "loss is NaN".into() }
}

fn job_view() -> JobView {
    JobView {
        job: JobId(1),
        name: "finance".into(),
        kind: "train".into(),
        priority: Priority::High,
        state: JobState::Running,
        waiting: Some("no node is ready".into()),
        reason: Some(FailureReason::Infra),
        message: None,
        submitted: Moment(1),
        started: Some(Moment(2)),
        ended: None,
        attempts: vec![AttemptView {
            attempt: ATTEMPT,
            node: NodeId(3),
            device: 0,
            backend: BackendKind::Wgpu,
            leased: Moment(4),
            ended: None,
            reason: Some(FailureReason::NodeLost),
            resumed_from: Some(200),
        }],
        progress: Some(progress()),
        endpoint: None,
        output: Some(OUTPUT),
        checkpoint: Some(CHECKPOINT),
        document: "version = 1".into(),
    }
}

#[test]
fn bytes_between_agent_and_scheduler_are_pinned() {
    let (attempt, epoch) = (ATTEMPT, EPOCH);
    let phases = [
        AttemptPhase::Leased,
        AttemptPhase::Prepared,
        AttemptPhase::Running,
        AttemptPhase::Checkpointing,
        AttemptPhase::Ended,
    ];
    let check_from = vec![
        FromAgent::Report { facts: facts(), attempts: vec![] },
        FromAgent::Beat { attempts: phases.map(attempt_report).to_vec() },
        FromAgent::Attempt(attempt_report(AttemptPhase::Running)),
        FromAgent::Progress { attempt, epoch, progress: progress() },
        FromAgent::CheckpointStored { attempt, epoch, artifact: CHECKPOINT },
        FromAgent::Ended { attempt, epoch, outcome: failed(), output: Some(OUTPUT) },
        FromAgent::Log { attempt, epoch, offset: 1 << 33, bytes: b"line\n".to_vec() },
        FromAgent::RenewCertificate { certificate_request: vec![0x30, 0] },
        FromAgent::ReportDevices { facts: facts(), details: vec![details()], attempts: vec![] },
    ];
    check!(
        FromAgent {
            Report,
            Beat,
            Attempt,
            Progress,
            CheckpointStored,
            Ended,
            Log,
            RenewCertificate,
            ReportDevices,
        },
        Limit::Agent,
        check_from
    );
    let start = Assignment {
        attempt,
        epoch,
        name: "finance".into(),
        document: "version = 1".into(),
        files: vec![file()],
        device: 0,
        backend: BackendKind::Cuda,
        memory: Bytes(1 << 32),
        inputs: vec![(JobId(7), HASH)],
        resume: Some(CHECKPOINT),
        lease: Span::from_seconds(30),
    };
    let check_to = vec![
        ToAgent::Welcome { lease: SECOND, beat: SECOND, keep_running: SECOND },
        ToAgent::Start(Box::new(start)),
        ToAgent::Stop { attempt, epoch, grace: SECOND },
        ToAgent::LeaseRenewed { attempts: vec![(attempt, epoch)], lease: SECOND },
        ToAgent::EndRecorded { attempt, epoch },
        ToAgent::Stale { attempt, epoch },
        ToAgent::LogStored { attempt, epoch, offset: 9 },
        ToAgent::Certificate { certificate: vec![1], valid_seconds: 86_400 },
        ToAgent::Refused { reason: "r".into() },
    ];
    check!(
        ToAgent { Welcome, Start, Stop, LeaseRenewed, EndRecorded, Stale, LogStored, Certificate, Refused },
        Limit::Agent,
        check_to
    );
}

#[test]
fn bytes_from_clients_are_pinned() {
    let job = JobId(1);
    let grants = TokenGrant::User { name: "ada".into(), role: Role::Submitter };
    check!(
        FromClient {
            Submit,
            Jobs,
            Job,
            Cancel,
            Logs,
            Watch,
            Nodes,
            Artifacts,
            CreateToken,
            Status,
            JobsBefore,
            Devices
        },
        Limit::Client,
        vec![
            FromClient::Submit {
                document: "version = 1".into(),
                files: vec![file()],
                memory: vec![Bytes(5)]
            },
            FromClient::Jobs,
            FromClient::Job { job },
            FromClient::Cancel { job },
            FromClient::Logs { job, attempt: Some(2), offset: 5, follow: true },
            FromClient::Watch { job },
            FromClient::Nodes,
            FromClient::Artifacts { job },
            FromClient::CreateToken { grants, valid: SECOND },
            FromClient::Status,
            FromClient::JobsBefore { before: Some(job), count: 100 },
            FromClient::Devices,
        ]
    );
}

#[test]
fn bytes_to_clients_are_pinned() {
    let job = JobId(1);
    let node = NodeView {
        node: NodeId(3),
        name: "node".into(),
        state: NodeState::Suspect,
        last_seen: Moment(7),
        build: "0.1.0".into(),
        cores: 8,
        memory: Bytes(9),
        devices: vec![DeviceView {
            facts: facts().devices.remove(0),
            memory_leased: Bytes(4),
            attempts: vec![ATTEMPT],
        }],
    };
    let status = StatusView { build: "0.1.0".into(), started: Moment(1), now: Moment(2), jobs: 3, nodes: 4 };
    let refusal = Refusal::new(RefusalKind::Denied, "no").with_hint("ask");
    check!(
        ToClient {
            Submitted,
            Jobs,
            Job,
            Cancelled,
            Log,
            Done,
            Nodes,
            Artifacts,
            Token,
            Status,
            Refused,
            Devices
        },
        Limit::Client,
        vec![
            ToClient::Submitted { job },
            ToClient::Jobs(vec![]),
            ToClient::Job(Box::new(job_view())),
            ToClient::Cancelled { job },
            ToClient::Log { attempt: ATTEMPT, offset: 5, bytes: vec![10] },
            ToClient::Done,
            ToClient::Nodes(vec![node]),
            ToClient::Artifacts(vec![OUTPUT, CHECKPOINT]),
            ToClient::Token { token: "motley1.x.y".into(), valid: SECOND },
            ToClient::Status(status),
            ToClient::Refused(refusal),
            ToClient::Devices(vec![(NodeId(3), vec![details()])]),
        ]
    );
}

#[test]
fn bytes_of_joining_greeting_and_bulk_are_pinned() {
    check!(
        BulkRequest { Missing, Put, Get },
        Limit::Bulk,
        vec![
            BulkRequest::Missing { hashes: vec![HASH] },
            BulkRequest::Put { hash: HASH, size: Bytes(1 << 40) },
            BulkRequest::Get { hash: HASH, offset: Bytes(3) },
        ]
    );
    check!(
        BulkReply { Missing, Stored, Found, Refused },
        Limit::Bulk,
        vec![
            BulkReply::Missing { hashes: vec![HASH] },
            BulkReply::Stored,
            BulkReply::Found { size: Bytes(3) },
            BulkReply::Refused { reason: "r".into() },
        ]
    );
    let hello = Hello { version_min: 1, version_max: 2, build: "0.1.0".into() };
    check_bytes("Hello", &hello, Limit::Join);
    check!(
        HelloReply { Agreed, Refused },
        Limit::Join,
        vec![
            HelloReply::Agreed { version: 1, build: "0.1.0".into() },
            HelloReply::Refused { reason: "r".into() },
        ]
    );
    let request = JoinRequest {
        version: 1,
        secret: "s".into(),
        certificate_request: vec![0x30],
        name: "machine".into(),
    };
    check_bytes("JoinRequest", &request, Limit::Join);
    let principal = Principal::User { name: "ada".into(), role: Role::Admin };
    check!(
        JoinReply { Accepted, Refused },
        Limit::Join,
        vec![
            JoinReply::Accepted { principal, certificate: vec![1], authority: vec![2], valid_seconds: 3 },
            JoinReply::Refused { reason: "r".into() },
        ]
    );
    check!(
        Principal { Node, User },
        Limit::Join,
        vec![
            Principal::Node { node: NodeId(7) },
            Principal::User { name: "ada".into(), role: Role::Operator },
        ]
    );
}

#[test]
fn bytes_of_the_journal_are_pinned() {
    let (job, attempt, at) = (JobId(1), ATTEMPT, Moment(1 << 40));
    let submission = Submission {
        owner: "ada".into(),
        document: "version = 1".into(),
        name: "finance".into(),
        kind: "train".into(),
        priority: Priority::Urgent,
        resources: vec![Resources {
            devices: DeviceCount { min: 1, max: 8 },
            backend: BackendKind::ALL.to_vec(),
            memory: Memory::Exact(Bytes(4)),
            threads: Some(2),
            fastest: false,
            device: Vec::new(),
        }],
        memory: vec![Bytes(4)],
        files: vec![file()],
        inputs: vec![JobId(7)],
        checkpoints_kept: 3,
    };
    check!(
        Change {
            JobAdded,
            CancelAsked,
            AttemptLeased,
            AttemptStarted,
            CheckpointRecorded,
            AttemptEnded,
            JobRequeued,
            JobEnded,
            NodeAdded,
            NodeReported,
            TokenAdded,
            TokenUsed,
            TokenExpired,
            AttemptRevived,
            ChoiceAdded,
            DevicesReported,
        },
        Limit::Client,
        vec![
            Change::JobAdded { job, submission, at },
            Change::CancelAsked { job, at },
            Change::AttemptLeased {
                attempt,
                epoch: EPOCH,
                node: NodeId(3),
                device: 1,
                backend: BackendKind::Wgpu,
                memory: Bytes(5),
                at,
            },
            Change::AttemptStarted { attempt, at },
            Change::CheckpointRecorded { attempt, artifact: CHECKPOINT },
            Change::AttemptEnded { attempt, reason: Some(FailureReason::Internal), at },
            Change::JobRequeued { job, not_before: at },
            Change::JobEnded { job, outcome: failed(), output: Some(OUTPUT), at },
            Change::NodeAdded { node: NodeId(3), name: "node".into(), at },
            Change::NodeReported { node: NodeId(3), facts: facts(), at },
            Change::TokenAdded { secret_hash: HASH, grants: TokenGrant::Node, expires: at },
            Change::TokenUsed { secret_hash: HASH },
            Change::TokenExpired { secret_hash: HASH },
            Change::AttemptRevived { attempt, at },
            Change::ChoiceAdded { job, choices: vec![Choice { fastest: true, device: vec![0, 3] }] },
            Change::DevicesReported { node: NodeId(3), details: vec![details()] },
        ]
    );
}

#[test]
fn every_small_name_keeps_its_number() {
    fn check<T: serde::Serialize>(names: &[T]) {
        for (index, name) in names.iter().enumerate() {
            assert_eq!(encode(name, Limit::Join), Ok(vec![index as u8]));
        }
    }
    check(&FailureReason::ALL);
    check(&BackendKind::ALL);
    check(&Role::ALL);
    check(&[Priority::Low, Priority::Normal, Priority::High, Priority::Urgent]);
    check(&[RefusalKind::Usage, RefusalKind::NotFound, RefusalKind::Denied, RefusalKind::Failed]);
    check(&[NodeState::Ready, NodeState::Suspect, NodeState::Lost]);
    use JobState::*;
    check(&[Queued, Placing, Starting, Running, Checkpointing, Succeeded, Failed, Cancelled]);
}

#[test]
fn no_line_of_the_file_is_without_a_check() {
    let names: Vec<_> = GOLDEN.lines().filter_map(|line| line.split(' ').next()).collect();
    let distinct: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!((names.len(), distinct.len()), (73, 73));
}
