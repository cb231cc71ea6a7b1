//! The rules of the cluster, one by one, on a fleet of scripted agents.

use super::*;
use crate::artifact::ArtifactKind;
use crate::wire::agent::{Assignment, AttemptPhase, AttemptReport, DeviceDetails, DeviceFacts};
use crate::wire::client::{JobState, JobView, NodeState, RefusalKind};

const GIB: u64 = 1 << 30;
const DOCUMENT: &str = r#"version = 1
kind = "train"
name = "finance"
[resources]
memory = "4GiB"
[model]
source = "a/b"
[adapter]
kind = "qlora"
[data]
train = "train.jsonl"
[loss]
kind = "cosent"
[checkpoint]
keep = 2
"#;

/// A cluster with its journal; after every event the journal must rebuild it.
struct Fleet {
    cluster: Cluster,
    journal: Vec<Change>,
    now: Moment,
    tickets: u64,
}

impl Fleet {
    fn new() -> Fleet {
        let mut fleet = Fleet {
            cluster: Cluster::new(Clocks::default()),
            journal: vec![],
            now: Moment(1_000_000),
            tickets: 0,
        };
        fleet.event(Event::Started);
        fleet
    }

    /// With nodes 1..=n of one cuda device each.
    fn of(memory_gib: &[u64]) -> Fleet {
        let mut fleet = Fleet::new();
        for memory in memory_gib {
            let node = fleet.join();
            fleet.report(node, *memory, &[]);
        }
        fleet
    }

    fn event(&mut self, event: Event) -> Vec<Action> {
        let handled = self.cluster.handle(event, self.now);
        self.journal.extend(handled.changes);
        let replayed = Cluster::replay(Clocks::default(), self.journal.clone()).unwrap();
        assert_eq!(replayed.state, self.cluster.state);
        handled.actions
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    /// Time passes in silence.
    fn wait(&mut self, seconds: u64) -> Vec<Action> {
        let end = self.now.after(Span::from_seconds(seconds));
        let mut actions = Vec::new();
        while let Some(deadline) = self.cluster.next_deadline().filter(|deadline| *deadline <= end) {
            assert!(deadline >= self.now || actions.is_empty(), "a deadline in the past");
            self.now = self.now.max(deadline);
            actions.extend(self.event(Event::Tick));
        }
        self.now = end;
        actions
    }

    /// Time passes while these nodes beat with these attempts.
    fn wait_beating(&mut self, seconds: u64, beats: &[(NodeId, Vec<AttemptReport>)]) -> Vec<Action> {
        let mut actions = Vec::new();
        for _ in 0..seconds {
            for (node, attempts) in beats {
                let message = FromAgent::Beat { attempts: attempts.clone() };
                actions.extend(self.say(*node, message));
            }
            actions.extend(self.wait(1));
        }
        actions
    }

    fn join(&mut self) -> NodeId {
        let (secret_hash, valid) = (ContentHash([self.tickets as u8 + 1; 32]), Span::from_seconds(60));
        let ticket = self.ticket();
        let created = Event::TokenCreated { ticket, secret_hash, grants: TokenGrant::Node, valid };
        assert_eq!(self.event(created), [Action::TokenStored { ticket }]);
        let presented = Event::TokenPresented { ticket, secret_hash, name: "machine".into() };
        match self.event(presented)[..] {
            [Action::Admit { grants: AdmitAs::Node { node }, .. }] => node,
            ref other => panic!("{other:?}"),
        }
    }

    fn report(&mut self, node: NodeId, memory_gib: u64, attempts: &[AttemptReport]) -> Vec<Action> {
        self.event(Event::AgentConnected { node });
        self.say(node, FromAgent::Report { facts: facts(memory_gib), attempts: attempts.to_vec() })
    }

    fn say(&mut self, node: NodeId, message: FromAgent) -> Vec<Action> {
        self.event(Event::AgentSaid { node, message })
    }

    fn submit(&mut self) -> (JobId, Vec<Action>) {
        self.submit_text(DOCUMENT)
    }

    fn submit_text(&mut self, document: &str) -> (JobId, Vec<Action>) {
        let ticket = self.ticket();
        let files = vec![file("data.train/train.jsonl")];
        let submission = Submission::new(document.into(), files, vec![Bytes(4 * GIB)], "ada").unwrap();
        let actions = self.event(Event::JobSubmitted { ticket, submission });
        match actions[0] {
            Action::Submitted { job, .. } => (job, actions),
            ref other => panic!("{other:?}"),
        }
    }

    fn cancel(&mut self, job: JobId) -> Vec<Action> {
        let ticket = self.ticket();
        self.event(Event::CancelRequested { ticket, job })
    }

    /// Attempt `id` of a job that was just leased runs now.
    fn run(&mut self, start: &Assignment, node: NodeId) -> AttemptReport {
        let report = report(start, AttemptPhase::Running);
        self.say(node, FromAgent::Attempt(report.clone()));
        report
    }

    fn end(&mut self, node: NodeId, start: &Assignment, outcome: Outcome) -> Vec<Action> {
        let (attempt, epoch) = (start.attempt, start.epoch);
        let output = (outcome == Outcome::Succeeded).then(|| artifact(ArtifactKind::Output, 9));
        self.say(node, FromAgent::Ended { attempt, epoch, outcome, output })
    }

    fn view(&self, job: JobId) -> JobView {
        self.cluster.job(job).unwrap()
    }

    /// The scheduler is killed and starts again.
    fn restart(&mut self) {
        self.cluster = Cluster::replay(Clocks::default(), self.journal.clone()).unwrap();
        self.event(Event::Started);
    }
}

fn facts(memory_gib: u64) -> NodeFacts {
    let device = DeviceFacts {
        index: 0,
        backend: BackendKind::Cuda,
        name: "device".into(),
        memory: Bytes(memory_gib * GIB),
    };
    NodeFacts {
        name: "machine".into(),
        boot: "boot".into(),
        build: "0.1.0".into(),
        devices: vec![device],
        cores: 8,
        memory: Bytes(64 * GIB),
    }
}

fn file(path: &str) -> FileEntry {
    FileEntry { path: path.into(), hash: ContentHash([7; 32]), size: Bytes(10) }
}

fn artifact(kind: ArtifactKind, byte: u8) -> ArtifactRef {
    ArtifactRef { kind, manifest: ContentHash([byte; 32]) }
}

fn report(start: &Assignment, phase: AttemptPhase) -> AttemptReport {
    AttemptReport { attempt: start.attempt, epoch: start.epoch, phase, endpoint: None }
}

fn failed(reason: FailureReason) -> Outcome {
    Outcome::Failed { reason, message: "what, where, remedy".into() }
}

/// What agents were told to start.
fn starts(actions: &[Action]) -> Vec<(NodeId, Assignment)> {
    let start = |action: &Action| match action {
        Action::SendAgent { node, message: ToAgent::Start(assignment) } => {
            Some((*node, (**assignment).clone()))
        }
        _ => None,
    };
    actions.iter().filter_map(start).collect()
}

fn one_start(actions: &[Action]) -> (NodeId, Assignment) {
    match &starts(actions)[..] {
        [start] => start.clone(),
        other => panic!("{other:?} in {actions:?}"),
    }
}

fn told(actions: &[Action], node: NodeId, message: &ToAgent) -> bool {
    actions.contains(&Action::SendAgent { node, message: message.clone() })
}

fn refusal(actions: &[Action]) -> Refusal {
    match actions {
        [Action::Refuse { refusal, .. }] => refusal.clone(),
        other => panic!("{other:?}"),
    }
}

mod joining;
mod leasing;
mod losing;
mod submitting;
