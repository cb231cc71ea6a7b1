//! Random histories, seeded: whatever agents, people and time do, the journal rebuilds the cluster, the same history
//! gives the same actions, and the invariants hold. In the end, when all agents behave, every job ends.

use std::collections::{BTreeMap, BTreeSet};

use super::state::JobPhase;
use super::*;
use crate::artifact::ArtifactKind;
use crate::wire::agent::{AttemptPhase, AttemptReport, DeviceDetails, DeviceFacts};
use crate::wire::client::NodeState;
use crate::wire::codec::journal::{decode_change, encode_change};

const GIB: u64 = 1 << 30;
const NODES: u64 = 4;

/// SplitMix64: enough to draw events.
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }
}

/// What one agent knows: its attempts with their phase.
type Agent = BTreeMap<(AttemptId, Epoch), AttemptPhase>;

struct World {
    cluster: Cluster,
    journal: Vec<Change>,
    /// Everything that came out, to compare two runs.
    output: Vec<Handled>,
    agents: BTreeMap<NodeId, Agent>,
    connected: BTreeSet<NodeId>,
    now: Moment,
    draw: Draw,
    epoch: Epoch,
}

impl World {
    fn new(seed: u64) -> World {
        let mut world = World {
            cluster: Cluster::new(Clocks::default()),
            journal: vec![],
            output: vec![],
            agents: BTreeMap::new(),
            connected: BTreeSet::new(),
            now: Moment(0),
            draw: Draw(seed),
            epoch: Epoch(0),
        };
        world.event(Event::Started);
        for index in 1..=NODES {
            let (ticket, secret_hash) = (Ticket(index), ContentHash([index as u8; 32]));
            let (grants, valid) = (TokenGrant::Node, Span::from_seconds(index * 100));
            world.event(Event::TokenCreated { ticket, secret_hash, grants, valid });
            world.event(Event::TokenPresented { ticket, secret_hash, name: format!("node-{index}") });
            world.agents.insert(NodeId(index), Agent::new());
        }
        world
    }

    fn event(&mut self, event: Event) {
        let ticked = event == Event::Tick;
        let before = self.cluster.state.clone();
        let handled = self.cluster.handle(event, self.now);
        for change in &handled.changes {
            if let Change::AttemptLeased { epoch, .. } = change {
                assert!(*epoch > self.epoch, "epochs grow");
                self.epoch = *epoch;
            }
            let bytes = encode_change(change).unwrap();
            assert_eq!(decode_change(&bytes).as_ref(), Ok(change));
        }
        for action in &handled.actions {
            self.obey(action);
        }
        self.journal.extend(handled.changes.iter().cloned());
        self.output.push(handled);
        self.check_invariants(&before);
        let (due, exact) = (self.cluster.next_deadline(), self.cluster.deadline());
        assert!(exact.is_none() || due.is_some_and(|due| Some(due) <= exact), "a tick comes too late");
        assert!(!ticked || due.is_none_or(|due| due > self.now), "ticks without end");
    }

    /// The agents' side of an action. Messages to those who are away are lost.
    fn obey(&mut self, action: &Action) {
        let Action::SendAgent { node, message } = action else {
            if let Action::Disconnect { node, .. } = action {
                self.connected.remove(node);
            }
            return;
        };
        let lost = !self.connected.contains(node) || self.draw.one_in(20);
        let Some(agent) = self.agents.get_mut(node).filter(|_| !lost) else { return };
        match message {
            ToAgent::Start(start) => {
                agent.entry((start.attempt, start.epoch)).or_insert(AttemptPhase::Leased);
            }
            ToAgent::Stop { attempt, epoch, .. } => {
                agent.entry((*attempt, *epoch)).and_modify(|phase| *phase = AttemptPhase::Ended);
            }
            ToAgent::EndRecorded { attempt, epoch } | ToAgent::Stale { attempt, epoch } => {
                agent.remove(&(*attempt, *epoch));
            }
            _ => {}
        }
    }

    fn check_invariants(&self, before: &super::state::State) {
        let state = &self.cluster.state;
        let mut leased: BTreeMap<(NodeId, u32), (Bytes, u32)> = BTreeMap::new();
        for (id, job) in &state.jobs {
            let live = job.attempts.iter().filter(|attempt| attempt.ended.is_none()).count();
            let (waiting, active) = match job.phase {
                JobPhase::Waiting { .. } => (true, false),
                JobPhase::Active => (false, true),
                JobPhase::Ended { .. } => (false, false),
            };
            assert_eq!(live, usize::from(active), "one live attempt of an active job");
            assert_eq!(state.active.contains(id), active);
            assert_eq!(state.waiting.iter().any(|(_, waits)| waits == id), waiting);
            for attempt in job.attempts.iter().filter(|attempt| attempt.ended.is_none()) {
                let entry = leased.entry((attempt.node, attempt.device)).or_default();
                *entry = (Bytes(entry.0.0 + attempt.memory.0), entry.1 + 1);
                let live = AttemptId { job: *id, number: job.attempts.len() as u32 };
                assert!(self.cluster.live.attempts.contains_key(&live));
            }
            if let Some(JobPhase::Ended { .. }) = before.jobs.get(id).map(|job| &job.phase) {
                assert_eq!(Some(job), before.jobs.get(id), "nothing happens to a job after its end");
            }
        }
        assert_eq!(leased, state.leased);
        for ((node, device), (memory, _)) in leased {
            let facts = state.nodes[&node].facts.as_ref().unwrap();
            assert!(memory <= facts.devices[device as usize].memory, "memory is leased once");
        }
    }

    fn say(&mut self, node: NodeId, message: FromAgent) {
        self.event(Event::AgentSaid { node, message });
    }

    fn reports(&self, node: NodeId) -> Vec<AttemptReport> {
        let report = |(&(attempt, epoch), &phase): (&(AttemptId, Epoch), &AttemptPhase)| AttemptReport {
            attempt,
            epoch,
            phase,
            endpoint: None,
        };
        self.agents[&node].iter().map(report).collect()
    }

    fn connect(&mut self, node: NodeId) {
        self.connected.insert(node);
        self.event(Event::AgentConnected { node });
        let devices = (0..2).map(|index| DeviceFacts {
            index,
            backend: if index == 0 { BackendKind::Cuda } else { BackendKind::Cpu },
            name: "device".into(),
            memory: Bytes((8 + 4 * node.0) * GIB),
        });
        let facts = NodeFacts {
            name: format!("node-{node}"),
            boot: "boot".into(),
            build: "0.1.0".into(),
            devices: devices.collect(),
            cores: 8,
            memory: Bytes(64 * GIB),
        };
        let attempts = self.reports(node);
        if node.0.is_multiple_of(2) {
            let details = facts.devices.iter().map(|device| DeviceDetails {
                index: device.index,
                backend_index: 0,
                driver: "driver".into(),
                capability: "capability".into(),
                precisions: vec!["f32".into()],
                is_software: false,
                same_card: None,
                gemm: Some(node.0 << (40 - device.index)),
                nf4: None,
                bandwidth: None,
            });
            let details = details.collect();
            return self.say(node, FromAgent::ReportDevices { facts, details, attempts });
        }
        self.say(node, FromAgent::Report { facts, attempts });
    }

    fn submit(&mut self) {
        let known = self.cluster.state.jobs.len() as u64;
        let inputs = if self.draw.one_in(4) { vec![JobId(self.draw.below(known + 2))] } else { vec![] };
        let submission = Submission {
            owner: "ada".into(),
            document: "text".into(),
            name: "job".into(),
            kind: "train".into(),
            priority: [Priority::Low, Priority::Normal, Priority::Urgent][self.draw.below(3) as usize],
            resources: vec![Resources::default()],
            memory: vec![Bytes((1 + self.draw.below(9)) * GIB)],
            files: vec![],
            inputs,
            checkpoints_kept: self.draw.below(3) as u32,
        };
        self.event(Event::JobSubmitted { ticket: Ticket(0), submission });
    }

    /// One attempt of the agent moves on.
    fn advance(&mut self, node: NodeId, behave: bool) {
        let count = self.agents[&node].len() as u64;
        if count == 0 {
            return;
        }
        let index = self.draw.below(count) as usize;
        let (&(attempt, epoch), &phase) = self.agents[&node].iter().nth(index).unwrap();
        let next = match phase {
            AttemptPhase::Leased => AttemptPhase::Prepared,
            AttemptPhase::Prepared => AttemptPhase::Running,
            AttemptPhase::Running if self.draw.one_in(3) => AttemptPhase::Ended,
            AttemptPhase::Running => AttemptPhase::Checkpointing,
            AttemptPhase::Checkpointing => AttemptPhase::Running,
            AttemptPhase::Ended => AttemptPhase::Ended,
        };
        self.agents.get_mut(&node).unwrap().insert((attempt, epoch), next);
        let kind = ArtifactKind::Checkpoint { step: self.draw.below(1000) };
        let artifact = ArtifactRef { kind, manifest: ContentHash([3; 32]) };
        let message = match next {
            AttemptPhase::Ended => {
                let reason = FailureReason::ALL[self.draw.below(12) as usize];
                let outcome = match self.draw.below(if behave { 1 } else { 4 }) {
                    0 => Outcome::Succeeded,
                    1 => Outcome::Cancelled,
                    _ => Outcome::Failed { reason, message: "text".into() },
                };
                FromAgent::Ended { attempt, epoch, outcome, output: Some(artifact) }
            }
            AttemptPhase::Checkpointing => FromAgent::CheckpointStored { attempt, epoch, artifact },
            phase => FromAgent::Attempt(AttemptReport { attempt, epoch, phase, endpoint: None }),
        };
        self.say(node, message);
    }

    fn step(&mut self) {
        let node = NodeId(1 + self.draw.below(NODES));
        match self.draw.below(24) {
            0..=2 => self.submit(),
            3 => {
                let job = JobId(1 + self.draw.below(self.cluster.state.jobs.len() as u64 + 1));
                self.event(Event::CancelRequested { ticket: Ticket(0), job });
            }
            4..=5 if !self.connected.contains(&node) => self.connect(node),
            6 => {
                self.connected.remove(&node);
                self.event(Event::AgentDisconnected { node });
                if self.draw.one_in(3) {
                    // The machine is gone, and all that ran there.
                    self.agents.insert(node, Agent::new());
                }
            }
            7 => {
                // A word of a lease that may never have been.
                let attempt = AttemptId { job: JobId(self.draw.below(9)), number: self.draw.below(4) as u32 };
                let epoch = Epoch(self.draw.below(30));
                self.say(
                    node,
                    FromAgent::Ended { attempt, epoch, outcome: Outcome::Succeeded, output: None },
                );
            }
            8 if self.draw.one_in(8) => {
                self.cluster = Cluster::replay(Clocks::default(), self.journal.clone()).unwrap();
                self.connected.clear();
                self.event(Event::Started);
            }
            9..=11 => {
                self.now = self.now.after(Span { milliseconds: self.draw.below(20_000) });
                self.event(Event::Tick);
            }
            12..=15 if self.connected.contains(&node) => {
                let attempts = self.reports(node);
                self.say(node, FromAgent::Beat { attempts });
            }
            _ if self.connected.contains(&node) => self.advance(node, false),
            _ => {}
        }
    }

    /// All agents are there and do their work: every job has to end.
    fn settle(&mut self) {
        for round in 0.. {
            if self.cluster.state.waiting.is_empty() && self.cluster.state.active.is_empty() {
                return;
            }
            assert!(round < 3000, "a job never ends: {:?}", self.cluster.jobs());
            self.now = self.now.after(Span::from_seconds(1));
            self.event(Event::Tick);
            for node in (1..=NODES).map(NodeId) {
                if !self.connected.contains(&node) {
                    self.connect(node);
                }
                let attempts = self.reports(node);
                self.say(node, FromAgent::Beat { attempts });
                self.advance(node, true);
            }
        }
    }
}

fn run(seed: u64) -> World {
    let mut world = World::new(seed);
    for _ in 0..300 {
        world.step();
    }
    world.settle();
    world
}

#[test]
fn every_history_can_be_replayed_and_every_job_ends() {
    let mut seen = BTreeSet::new();
    for seed in 0..60 {
        // A failure names its seed: `run(seed)` replays it.
        let world = std::panic::catch_unwind(|| run(seed)).unwrap_or_else(|_| panic!("seed {seed}"));
        let replayed = Cluster::replay(Clocks::default(), world.journal.clone()).unwrap();
        assert_eq!(replayed.state, world.cluster.state, "seed {seed}");
        assert!(world.cluster.nodes().iter().all(|node| node.state == NodeState::Ready));
        seen.extend(world.journal.iter().map(Change::name));
    }
    assert_eq!(seen.len(), 16, "the histories meet every change: {seen:?}");
}

#[test]
fn same_history_gives_the_same_actions() {
    for seed in 1000..1010 {
        assert_eq!(run(seed).output, run(seed).output, "seed {seed}");
    }
}

#[test]
fn journal_with_a_missing_row_is_refused() {
    let world = run(7);
    for lost in [0, world.journal.len() / 3] {
        let mut journal = world.journal.clone();
        let row = journal[lost..].iter().position(|change| {
            matches!(
                change,
                Change::NodeAdded { .. } | Change::JobAdded { .. } | Change::AttemptLeased { .. }
            )
        });
        journal.remove(lost + row.unwrap());
        assert!(Cluster::replay(Clocks::default(), journal).is_err());
    }
}
