//! The one task that owns the cluster.
//!
//! ```text
//! inbox → batch → Cluster::handle for each → one transaction → actions → answers, looks
//! ```
//!
//! While a transaction is on its way to the disk the inbox fills: the next batch is the larger, so a slow disk makes
//! commits larger, not answers ever later. Nothing that was decided is acted upon or shown before it is stored.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use motley_scheduler_core::cluster::{Action, AdmitAs, Clocks, Cluster, Event, Handled, Ticket};
use motley_scheduler_core::id::{JobId, NodeId};
use motley_scheduler_core::unit::{Moment, Span};
use motley_scheduler_core::wire::agent::{FromAgent, ToAgent};
use motley_scheduler_core::wire::client::{Refusal, RefusalKind};
use motley_scheduler_link::Link;
use tokio::sync::{mpsc, oneshot};

use crate::HeadError;
use crate::agents::Connection;
use crate::clock::Clock;
use crate::outside::Outside;
use crate::store::{Batch, Writer};

/// Inputs that wait: senders are held back beyond it, and QUIC holds their peers back.
const INBOX: usize = 4096;

/// Inputs of one transaction. A thousand changes commit in about the time of one.
const BATCH_MAX: usize = 1024;

/// The clock is stored at least so often, changes or none.
const CLOCK_STORED_EVERY: Span = Span::from_seconds(60);

/// A deadline that does not move on is looked at so often, not in a tight loop.
const TICK_MIN: Duration = Duration::from_millis(10);

/// After a failed commit: a full disk is not freed within milliseconds.
const RECOVERY_PAUSE: Duration = Duration::from_secs(1);

/// The answer to an event that carried a ticket.
#[derive(Debug)]
pub(crate) enum Answer {
    Submitted(JobId),
    Cancelled(JobId),
    TokenStored,
    Admit(AdmitAs),
    Refused(Refusal),
}

type Look = Box<dyn FnOnce(&Cluster) + Send>;

pub(crate) enum Input {
    Ask { ticket: Ticket, event: Event, answer: oneshot::Sender<Answer> },
    Look(Look),
    AgentConnected { node: NodeId, connection: Connection, link: Link, outbox: mpsc::Sender<ToAgent> },
    AgentSaid { node: NodeId, connection: Connection, message: FromAgent },
    AgentGone { node: NodeId, connection: Connection },
    Stop { stopped: oneshot::Sender<()> },
}

/// How everybody else talks to the engine.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    inbox: mpsc::Sender<Input>,
    numbers: Arc<AtomicU64>,
}

pub(crate) struct Engine {
    inbox: mpsc::Receiver<Input>,
    cluster: Cluster,
    clocks: Clocks,
    clock: Clock,
    writer: Writer,
    outside: Outside,
    askers: BTreeMap<Ticket, oneshot::Sender<Answer>>,
    clock_stored: Moment,
}

/// What a batch leaves to be done after its commit.
#[derive(Default)]
struct Pending {
    handled: Handled,
    looks: Vec<Look>,
    stopped: Option<oneshot::Sender<()>>,
}

impl Handle {
    /// Puts an event with a ticket, and waits for its answer.
    pub(crate) async fn ask(&self, event: impl FnOnce(Ticket) -> Event) -> Answer {
        let ticket = Ticket(self.number());
        let (answer, answered) = oneshot::channel();
        self.send(Input::Ask { ticket, event: event(ticket), answer }).await;
        answered.await.unwrap_or_else(|_| Answer::Refused(stopping()))
    }

    /// Reads from the cluster, after everything that was sent before is stored.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Cluster) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let (answer, answered) = oneshot::channel();
        // An asker that is gone needs no answer.
        self.send(Input::Look(Box::new(move |cluster| drop(answer.send(look(cluster)))))).await;
        answered.await.map_err(|_| stopping())
    }

    /// Waits for room in the inbox. An engine that has ended takes nothing, and its askers notice.
    pub(crate) async fn send(&self, input: Input) {
        let _ = self.inbox.send(input).await;
    }

    pub(crate) fn new_connection(&self) -> Connection {
        Connection(self.number())
    }

    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }
}

fn stopping() -> Refusal {
    Refusal::new(RefusalKind::Failed, "the scheduler is stopping").with_hint("try again when it runs")
}

impl Engine {
    pub(crate) fn new(
        cluster: Cluster,
        clocks: Clocks,
        clock: Clock,
        writer: Writer,
        outside: Outside,
    ) -> (Engine, Handle) {
        let (sender, inbox) = mpsc::channel(INBOX);
        let clock_stored = Moment(0);
        let askers = BTreeMap::new();
        let engine = Engine { inbox, cluster, clocks, clock, writer, outside, askers, clock_stored };
        (engine, Handle { inbox: sender, numbers: Arc::new(AtomicU64::new(1)) })
    }

    /// Works until stopped, until everybody who could send is gone, or until the store is beyond repair.
    pub(crate) async fn run(mut self) -> Result<(), HeadError> {
        let mut pending = Pending::default();
        self.handle(Event::Started, &mut pending);
        loop {
            let stopped = pending.stopped.take();
            self.finish(pending, stopped.is_some()).await?;
            if let Some(stopped) = stopped {
                // A stopper that is gone needs no answer.
                let _ = stopped.send(());
                return Ok(());
            }
            let Some(first) = self.next_input().await else { return Ok(()) };
            pending = self.take_batch(first);
        }
    }

    /// The next input (`Some(Some)`), a deadline (`Some(None)`), or the end.
    async fn next_input(&mut self) -> Option<Option<Input>> {
        let now = self.clock.now();
        let mut wait = self.clock_stored.after(CLOCK_STORED_EVERY).since(now);
        if let Some(deadline) = self.cluster.next_deadline() {
            wait = wait.min(deadline.since(now));
        }
        let wait = Duration::from_millis(wait.milliseconds).max(TICK_MIN);
        match tokio::time::timeout(wait, self.inbox.recv()).await {
            Ok(Some(input)) => Some(Some(input)),
            Ok(None) => None,
            Err(_) => Some(None),
        }
    }

    fn take_batch(&mut self, first: Option<Input>) -> Pending {
        let mut pending = Pending::default();
        if let Some(first) = first {
            self.take(first, &mut pending);
        }
        for _ in 1..BATCH_MAX {
            match self.inbox.try_recv() {
                Ok(input) if pending.stopped.is_none() => self.take(input, &mut pending),
                _ => break,
            }
        }
        let is_due = self.cluster.next_deadline().is_some_and(|deadline| deadline <= self.clock.now());
        // Whoever looks is shown the present.
        if is_due || !pending.looks.is_empty() {
            self.handle(Event::Tick, &mut pending);
        }
        pending
    }

    fn take(&mut self, input: Input, pending: &mut Pending) {
        match input {
            Input::Ask { ticket, event, answer } => {
                self.askers.insert(ticket, answer);
                self.handle(event, pending);
            }
            Input::Look(look) => pending.looks.push(look),
            Input::AgentConnected { node, connection, link, outbox } => {
                if self.outside.agents.add(node, connection, link, outbox) {
                    self.handle(Event::AgentDisconnected { node }, pending);
                }
                tracing::info!(%node, "agent connected");
                self.handle(Event::AgentConnected { node }, pending);
            }
            Input::AgentSaid { node, connection, message } => {
                if self.outside.agents.is_current(node, connection) {
                    self.handle(Event::AgentSaid { node, message }, pending);
                }
            }
            Input::AgentGone { node, connection } => {
                if self.outside.agents.remove(node, connection) {
                    tracing::info!(%node, "agent disconnected");
                    self.handle(Event::AgentDisconnected { node }, pending);
                }
            }
            Input::Stop { stopped } => pending.stopped = Some(stopped),
        }
    }

    fn handle(&mut self, event: Event, pending: &mut Pending) {
        let handled = self.cluster.handle(event, self.clock.now());
        pending.handled.changes.extend(handled.changes);
        pending.handled.actions.extend(handled.actions);
    }

    /// Commits, acts, answers, shows.
    async fn finish(&mut self, pending: Pending, is_last: bool) -> Result<(), HeadError> {
        let Handled { changes, actions } = pending.handled;
        let now = self.clock.now();
        let is_clock_old = now >= self.clock_stored.after(CLOCK_STORED_EVERY);
        if !changes.is_empty() || is_clock_old || is_last {
            let batch = Batch { changes, now };
            let (batch, result) = self.writer.commit(batch).await?;
            if let Err(error) = result {
                return self.recover(error).await;
            }
            self.clock_stored = now;
            batch.changes.iter().for_each(crate::outside::log_change);
        }
        for action in actions {
            self.act(action).await;
        }
        // Every ticket is answered in its own batch.
        for (_, asker) in std::mem::take(&mut self.askers) {
            let refusal = Refusal::new(RefusalKind::Failed, "the scheduler gave no answer");
            let _ = asker.send(Answer::Refused(refusal));
        }
        pending.looks.into_iter().for_each(|look| look(&self.cluster));
        Ok(())
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Submitted { ticket, job } => self.answer(ticket, Answer::Submitted(job)),
            Action::Cancelled { ticket, job } => self.answer(ticket, Answer::Cancelled(job)),
            Action::TokenStored { ticket } => self.answer(ticket, Answer::TokenStored),
            Action::Admit { ticket, grants } => self.answer(ticket, Answer::Admit(grants)),
            Action::Refuse { ticket, refusal } => self.answer(ticket, Answer::Refused(refusal)),
            other => self.outside.act(other).await,
        }
    }

    fn answer(&mut self, ticket: Ticket, answer: Answer) {
        if let Some(asker) = self.askers.remove(&ticket) {
            // An asker that is gone needs no answer.
            let _ = asker.send(answer);
        }
    }

    /// The store refused a batch: forgets what was decided, goes on from what is stored, and has every agent report
    /// anew. Whoever asked is told.
    async fn recover(&mut self, error: HeadError) -> Result<(), HeadError> {
        tracing::error!("decisions could not be stored, going back to what is: {error}");
        for (_, asker) in std::mem::take(&mut self.askers) {
            let refusal = Refusal::new(
                RefusalKind::Failed,
                format!("the scheduler cannot store its decisions: {error}"),
            )
            .with_hint("has the scheduler's disk room?");
            let _ = asker.send(Answer::Refused(refusal));
        }
        tokio::time::sleep(RECOVERY_PAUSE).await;
        let stored = self.writer.load().await?;
        self.cluster = replay(&self.clocks, stored.changes)?;
        // Nothing follows from a start but that everybody has to report.
        let _ = self.cluster.handle(Event::Started, self.clock.now());
        self.clock_stored = self.clock.now();
        self.outside.agents.disconnect_all("the scheduler has restarted its journal");
        Ok(())
    }
}

/// The cluster that a journal describes.
pub(crate) fn replay(
    clocks: &Clocks,
    changes: Vec<motley_scheduler_core::cluster::Change>,
) -> Result<Cluster, HeadError> {
    Cluster::replay(clocks.clone(), changes).map_err(|error| HeadError::History { reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicBool;
    use std::time::{Instant, SystemTime};

    use motley_scheduler_core::cluster::{Change, Submission};
    use motley_scheduler_core::unit::Bytes;
    use motley_scheduler_link::Authority;

    use super::*;
    use crate::agents::Agents;
    use crate::lock::FolderLock;
    use crate::logs::Logs;
    use crate::outside::LogWriter;
    use crate::store::{Store, Stored};
    use crate::watchers::Watchers;

    const DOCUMENT: &str = "version = 1\nkind = \"serve\"\nname = \"api\"\n[resources]\nmemory = \"1GiB\"\n[model]\nsource = \"a/b\"\n";

    /// A disk that can be full.
    #[derive(Default, Clone)]
    struct Disk {
        rows: Arc<Mutex<Vec<Change>>>,
        commits: Arc<AtomicU64>,
        full: Arc<AtomicBool>,
        slow: Arc<AtomicBool>,
    }

    impl Store for Disk {
        fn load(&mut self) -> Result<Stored, HeadError> {
            Ok(Stored { changes: self.rows.lock().unwrap().clone(), clock: Moment(0) })
        }

        fn commit(&mut self, batch: &Batch) -> Result<(), HeadError> {
            if self.slow.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(50));
            }
            if self.full.load(Ordering::Relaxed) {
                let reason = "database or disk is full".into();
                return Err(HeadError::Ended { what: "disk", reason });
            }
            self.rows.lock().unwrap().extend(batch.changes.iter().cloned());
            self.commits.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }

    fn start(folder: &std::path::Path, disk: &Disk) -> Handle {
        let (agents, watchers) = (Arc::new(Agents::default()), Arc::new(Watchers::default()));
        let logs = Logs::open(&folder.join("logs")).unwrap();
        let outside = Outside {
            agents: agents.clone(),
            watchers: watchers.clone(),
            authority: Arc::new(Authority::create().unwrap()),
            logs: LogWriter::start(logs, agents, watchers).unwrap(),
        };
        let writer = Writer::start(disk.clone(), FolderLock::take(folder).unwrap()).unwrap();
        let clock = Clock::start(Moment(0), SystemTime::now(), Instant::now());
        let cluster = Cluster::new(Clocks::default());
        let (engine, handle) = Engine::new(cluster, Clocks::default(), clock, writer, outside);
        tokio::spawn(engine.run());
        handle
    }

    async fn submit(engine: &Handle) -> Answer {
        let submission = Submission::new(DOCUMENT.into(), vec![], vec![Bytes(1 << 30)], "ada").unwrap();
        engine.ask(|ticket| Event::JobSubmitted { ticket, submission }).await
    }

    #[tokio::test]
    async fn full_disk_is_told_to_whoever_asked_and_nothing_undone_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::default();
        let engine = start(folder.path(), &disk);
        assert!(matches!(submit(&engine).await, Answer::Submitted(JobId(1))));
        disk.full.store(true, Ordering::Relaxed);
        let Answer::Refused(refusal) = submit(&engine).await else { panic!() };
        assert!(refusal.message.contains("disk is full") && refusal.hint.is_some(), "{refusal:?}");
        assert_eq!(engine.look(|cluster| cluster.jobs().len()).await.unwrap(), 1);
        disk.full.store(false, Ordering::Relaxed);
        assert!(
            matches!(submit(&engine).await, Answer::Submitted(JobId(2))),
            "the number was never given away"
        );
        // Each submission is the job and its choice of devices.
        assert_eq!(disk.rows.lock().unwrap().len(), 4);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn slow_disk_makes_commits_larger_not_more() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::default();
        disk.slow.store(true, Ordering::Relaxed);
        let engine = start(folder.path(), &disk);
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..200 {
            let engine = engine.clone();
            tasks.spawn(async move { matches!(submit(&engine).await, Answer::Submitted(_)) });
        }
        while let Some(submitted) = tasks.join_next().await {
            assert!(submitted.unwrap());
        }
        assert_eq!(disk.rows.lock().unwrap().len(), 400);
        let commits = disk.commits.load(Ordering::Relaxed);
        assert!(commits <= 10, "{commits} commits for 400 changes");
    }

    #[tokio::test]
    async fn engine_that_has_stopped_refuses_and_does_not_hang() {
        let folder = tempfile::tempdir().unwrap();
        let engine = start(folder.path(), &Disk::default());
        let (stopped, waited) = oneshot::channel();
        engine.send(Input::Stop { stopped }).await;
        waited.await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(matches!(submit(&engine).await, Answer::Refused(_)));
        assert!(engine.look(|_| ()).await.is_err());
    }
}
