//! The task of one attempt: looks at files, process and orders a few times a second, and takes the next step.

use std::sync::Arc;
use std::time::{Duration, Instant};

use motley_scheduler_core::artifact::{ArtifactKind, ArtifactRef};
use motley_scheduler_core::failure::FailureReason;
use motley_scheduler_core::unit::Span;
use motley_scheduler_core::wire::agent::{AttemptPhase, AttemptReport, Outcome, Progress};
use nix::sys::signal::Signal;
use tokio::task::JoinHandle;

use super::folder::{AttemptFolder, End, Record};
use super::process::{Life, RunnerProcess, last_lines};
use super::publish::Publisher;
use super::stop::Stopping;
use super::store::{Retry, Storing};
use super::tail::{EventTail, LogTail};
use super::{Attempt, Orders, Session, Sessions, Shared};
use crate::failure::{Failure, transfer_reason};
use crate::runner::RunnerSpec;
use crate::runner::control::{ControlCommand, tell};
use crate::runner::events::RunnerEvent;
use crate::runner::result::RunnerResult;
use crate::settings::RunnerCommand;
use crate::transfer::TransferError;
use crate::transfer::download::{BlobCache, prepare};
use crate::transfer::upload::Upload;

/// How soon the end of a runner, a new event or a new checkpoint is noticed.
const LOOK: Duration = Duration::from_millis(100);

/// A runner that has written its result ends at once; one that hangs is killed after this.
const EXIT: Duration = Duration::from_secs(10);

/// How long an end report waits for the last of the log to be stored.
const LOG_WAIT: Duration = Duration::from_secs(5);

/// Grace of an attempt that is of no interest any more.
const STALE_GRACE: Span = Span::from_seconds(10);

/// What all attempts of a node share.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) cache: BlobCache,
    pub(crate) runner: RunnerCommand,
}

pub(crate) struct Driver {
    site: Arc<Site>,
    folder: AttemptFolder,
    spec: RunnerSpec,
    shared: Arc<Shared>,
    stage: Stage,
    record: Record,
    events: EventTail,
    publisher: Publisher,
    progress: Option<Progress>,
    stopping: Option<Stopping>,
    /// Stale: nothing is published any more.
    abandoned: bool,
    storing: Storing,
    /// The newest checkpoint that could not be stored and is not tried again.
    checkpoint_skipped: Option<u64>,
    lease_told: Option<Instant>,
    session: Option<Session>,
}

enum Stage {
    Preparing { task: Option<JoinHandle<Result<(), TransferError>>>, retry: Retry },
    Running { process: RunnerProcess, result_seen: Option<Instant> },
    Ending { outcome: Outcome, output: Output, since: Instant },
    Reported,
    Over,
}

/// Whether the output folder is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    Wanted,
    Settled(Option<ArtifactRef>),
}

impl Driver {
    /// Starts the task of an attempt whose folder holds its spec: a new one, or one of an earlier agent.
    pub(crate) fn start(
        site: Arc<Site>,
        folder: AttemptFolder,
        spec: RunnerSpec,
        sessions: Sessions,
        orders: Orders,
    ) -> Attempt {
        let (attempt, epoch) = (spec.assignment.attempt, spec.assignment.epoch);
        let report = AttemptReport { attempt, epoch, phase: AttemptPhase::Leased, endpoint: None };
        let shared = Arc::new(Shared::new(report));
        shared.order(|all| *all = orders);
        let record = folder.record();
        let stage = match RunnerProcess::adopt(&folder) {
            _ if record.end.is_some() => Stage::Reported,
            Some(process) => Stage::Running { process, result_seen: None },
            None => Stage::Preparing { task: None, retry: Retry::new() },
        };
        let mut driver = Driver {
            events: EventTail::new(folder.path.join("events.jsonl")),
            publisher: Publisher::new(attempt, epoch, LogTail::new(folder.log())),
            shared: Arc::clone(&shared),
            site,
            folder,
            spec,
            stage,
            record,
            progress: None,
            stopping: None,
            abandoned: false,
            storing: Storing::new(),
            checkpoint_skipped: None,
            lease_told: None,
            session: None,
        };
        // The first report to the scheduler names the phase that the events tell.
        driver.read_events();
        if driver.record.end.is_some() {
            driver.set_phase(AttemptPhase::Ended);
        }
        Attempt { task: tokio::spawn(driver.drive(sessions)), shared }
    }

    async fn drive(mut self, mut sessions: Sessions) {
        loop {
            let orders = self.shared.take_orders();
            self.session = sessions.borrow_and_update().clone();
            self.look(&orders).await;
            if matches!(self.stage, Stage::Over) {
                self.folder.remove();
                return;
            }
            let shared = Arc::clone(&self.shared);
            tokio::select! {
                () = shared.wake.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
                changed = sessions.changed() => {
                    if changed.is_err() {
                        // The agent ends. The runner goes on; the next agent finds it.
                        return;
                    }
                }
            }
        }
    }

    async fn look(&mut self, orders: &Orders) {
        self.obey(orders);
        self.read_events();
        match &self.stage {
            Stage::Preparing { .. } => self.look_preparing().await,
            Stage::Running { .. } => self.look_running(),
            Stage::Ending { .. } | Stage::Reported | Stage::Over => {}
        }
        self.look_storing().await;
        self.look_ending();
        self.publish(orders);
    }

    fn obey(&mut self, orders: &Orders) {
        if let Some(offset) = orders.log_stored {
            self.publisher.log.stored(offset);
        }
        let reported = matches!(self.stage, Stage::Reported);
        if orders.end_recorded && reported {
            self.stage = Stage::Over;
            return;
        }
        if (orders.stale || orders.end_recorded) && !self.abandoned {
            tracing::warn!(attempt = %self.spec.assignment.attempt, "attempt is stale: stopping, publishing nothing");
            self.abandoned = true;
            self.stopping.get_or_insert_with(|| Stopping::new(STALE_GRACE));
        }
        if let Some(grace) = orders.stop {
            let document = &self.spec.assignment.document;
            self.stopping.get_or_insert_with(|| Stopping::of_job(document, grace));
        }
        self.tell_lease(orders);
    }

    /// Hands a renewal on to the runner.
    fn tell_lease(&mut self, orders: &Orders) {
        let Some(renewal) = orders.lease.filter(|renewal| self.lease_told != Some(renewal.at)) else {
            return;
        };
        if !matches!(self.stage, Stage::Running { .. }) || self.abandoned {
            return;
        }
        self.lease_told = Some(renewal.at);
        let left = Span { milliseconds: renewal.left(Instant::now()).as_millis() as u64 };
        let command = ControlCommand::Lease { lease: left, keep_running: renewal.keep_running };
        let folder = self.folder.path.clone();
        // A runner that does not answer must not hold up the agent. The next renewal comes with the next beat.
        tokio::task::spawn_blocking(move || tell(&folder, command));
    }

    fn read_events(&mut self) {
        for event in self.events.read() {
            match event {
                RunnerEvent::Phase { phase } => self.set_phase(phase),
                RunnerEvent::Progress { progress } => self.progress = Some(progress),
                RunnerEvent::Endpoint { endpoint } => self.shared.lock_report().endpoint = Some(endpoint),
                // The folder itself tells which checkpoints are complete.
                RunnerEvent::Checkpoint { .. } => {}
            }
        }
    }

    fn set_phase(&self, phase: AttemptPhase) {
        self.shared.lock_report().phase = phase;
    }

    async fn look_preparing(&mut self) {
        if self.find_runner() {
            return;
        }
        if self.stopping.is_some() {
            return self.end(Outcome::Cancelled, Output::Settled(None));
        }
        let Stage::Preparing { task, retry } = &mut self.stage else { return };
        if task.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(finished) = task.take()
        {
            let result = finished.await.unwrap_or_else(|error| Err(TransferError::Lost(error.to_string())));
            match result {
                Ok(()) => return self.start_runner(),
                Err(error) => {
                    if let Some(error) = retry.failed(error) {
                        let failure = Failure::new(transfer_reason(&error), error);
                        return self.fail(failure);
                    }
                }
            }
        }
        if let (None, true, Some(session)) = (&task, retry.is_due(), &self.session) {
            let (site, blobs) = (Arc::clone(&self.site), session.blobs.clone());
            let (path, assignment) = (self.folder.path.clone(), self.spec.assignment.clone());
            *task =
                Some(tokio::spawn(async move { prepare(&path, &assignment, &site.cache, &*blobs).await }));
        }
    }

    /// An earlier agent may have ended between the start of its runner and that runner's lock, which is how runners are
    /// found: then it appears while the attempt is prepared once more.
    fn find_runner(&mut self) -> bool {
        let Some(process) = RunnerProcess::adopt(&self.folder) else { return false };
        if let Stage::Preparing { task: Some(task), .. } = &self.stage {
            task.abort();
        }
        tracing::info!(attempt = %self.spec.assignment.attempt, pid = process.pid(), "runner of an earlier agent found");
        self.stage = Stage::Running { process, result_seen: None };
        true
    }

    fn start_runner(&mut self) {
        if self.find_runner() {
            return;
        }
        match RunnerProcess::start(&self.folder, &self.site.runner, &self.spec.nonce) {
            Ok(process) => {
                tracing::info!(attempt = %self.spec.assignment.attempt, pid = process.pid(), "runner started");
                self.set_phase(AttemptPhase::Prepared);
                self.stage = Stage::Running { process, result_seen: None };
            }
            Err(error) => {
                let program = self.site.runner.program.display();
                self.fail(Failure::new(FailureReason::Infra, format!("cannot start {program}: {error}")));
            }
        }
    }

    fn look_running(&mut self) {
        let Stage::Running { process, result_seen } = &mut self.stage else { return };
        let life = process.look();
        if life == Life::Alive {
            if let Some(stopping) = &mut self.stopping {
                stopping.escalate(&self.folder, process);
            }
            if self.folder.path.join("result.json").exists()
                && result_seen.get_or_insert_with(Instant::now).elapsed() > EXIT
            {
                tracing::warn!(pid = process.pid(), "runner hangs after its result: killing it");
                process.signal(Signal::SIGKILL);
            }
            return;
        }
        let pid = process.pid();
        let result = RunnerResult::read(&self.folder.path);
        if let (Ok(None), Some(first)) = (&result, process.forestalled_by(&self.folder)) {
            tracing::warn!(pid, first = first.pid(), "runner gave way to that of an earlier agent");
            self.stage = Stage::Running { process: first, result_seen: None };
            return;
        }
        let outcome = match (result, life) {
            (Ok(Some(result)), _) => result.outcome,
            _ if self.stopping.is_some() => Outcome::Cancelled,
            (Ok(None), Life::Gone(how)) => self.lost(pid, &how),
            (Ok(None), Life::Alive) => return,
            (Err(error), _) => self.lost(pid, &format!("left a result that cannot be read ({error})")),
        };
        let killed = self.stopping.as_ref().is_some_and(Stopping::has_killed);
        tracing::info!(attempt = %self.spec.assignment.attempt, pid, ?outcome, killed, "runner ended");
        let lost = matches!(&outcome, Outcome::Failed { reason: FailureReason::RunnerLost, .. }) || killed;
        // A killed runner leaves files that are half written.
        self.end(outcome, if lost { Output::Settled(None) } else { Output::Wanted });
    }

    fn lost(&self, pid: Option<u32>, how: &str) -> Outcome {
        let pid = pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
        let lines = last_lines(&self.folder.log());
        let log = if lines.is_empty() { String::new() } else { format!("\nlast lines of its log:\n{lines}") };
        let text = format!("the runner{pid} on {} {how} and left no result{log}", self.spec.node);
        let Failure { reason, message } = Failure::new(FailureReason::RunnerLost, text);
        Outcome::Failed { reason, message }
    }

    fn fail(&mut self, failure: Failure) {
        let Failure { reason, message } = failure;
        self.end(Outcome::Failed { reason, message }, Output::Settled(None));
    }

    fn end(&mut self, outcome: Outcome, output: Output) {
        if let Stage::Preparing { task: Some(task), .. } = &self.stage {
            task.abort();
        }
        // Events that came with the end.
        self.read_events();
        self.stage = Stage::Ending { outcome, output, since: Instant::now() };
    }

    /// Stores the newest checkpoint, and at the end the output.
    async fn look_storing(&mut self) {
        if let Some((kind, result)) = self.storing.finished().await {
            match (kind, result) {
                (ArtifactKind::Checkpoint { .. }, Ok(Some(artifact))) => {
                    self.record.checkpoint = Some(artifact);
                    self.save();
                }
                (ArtifactKind::Checkpoint { step }, Ok(None) | Err(TransferError::Gone { .. })) => {
                    self.checkpoint_skipped = Some(step);
                }
                (ArtifactKind::Checkpoint { step }, Err(error)) => {
                    tracing::error!(step, %error, "checkpoint not stored");
                    self.checkpoint_skipped = Some(step);
                }
                (ArtifactKind::Output, result) => self.settle_output(result),
            }
        }
        let (Some(session), true, false) = (&self.session, self.storing.is_idle(), self.abandoned) else {
            return;
        };
        if let Some(step) = self.checkpoint_to_store() {
            let what = self.upload(self.folder.checkpoint(step), ArtifactKind::Checkpoint { step });
            self.storing.start(session, what);
        } else if let Stage::Ending { output: Output::Wanted, .. } = &self.stage {
            let what = self.upload(self.folder.output(), ArtifactKind::Output);
            self.storing.start(session, what);
        }
    }

    fn settle_output(&mut self, result: Result<Option<ArtifactRef>, TransferError>) {
        let Stage::Ending { outcome, output, .. } = &mut self.stage else { return };
        *output = Output::Settled(result.as_ref().ok().copied().flatten());
        match result {
            // A runner that failed early has made no output folder.
            Ok(_) | Err(TransferError::Gone { .. }) => {}
            Err(error) => {
                tracing::error!(%error, "output not stored");
                if *outcome == Outcome::Succeeded {
                    let text = format!("the job is done, but its output cannot be stored: {error}");
                    let Failure { reason, message } = Failure::new(transfer_reason(&error), text);
                    *outcome = Outcome::Failed { reason, message };
                }
            }
        }
    }

    /// The newest complete checkpoint, if it is newer than what is stored or given up.
    fn checkpoint_to_store(&self) -> Option<u64> {
        let stored = self.record.checkpoint.and_then(|artifact| match artifact.kind {
            ArtifactKind::Checkpoint { step } => Some(step),
            ArtifactKind::Output => None,
        });
        let done = stored.max(self.checkpoint_skipped);
        self.folder.newest_checkpoint().filter(|&step| done.is_none_or(|done| step > done))
    }

    fn upload(&self, folder: std::path::PathBuf, kind: ArtifactKind) -> Upload {
        let (attempt, epoch) = (self.spec.assignment.attempt, self.spec.assignment.epoch);
        Upload { folder, kind, attempt, epoch, manifest: self.folder.path.join("manifest.json") }
    }

    /// Ends the attempt once everything is stored.
    fn look_ending(&mut self) {
        let Stage::Ending { outcome, output, since } = &self.stage else { return };
        if self.abandoned {
            self.stage = Stage::Over;
            return;
        }
        let Output::Settled(output) = *output else { return };
        let stored = self.storing.is_idle() && self.checkpoint_to_store().is_none();
        let log = self.publisher.log.is_done() || (self.session.is_some() && since.elapsed() > LOG_WAIT);
        if !stored || !log {
            return;
        }
        self.record.end = Some(End { outcome: outcome.clone(), output });
        self.save();
        self.stage = Stage::Reported;
    }

    fn publish(&mut self, orders: &Orders) {
        let Some(session) = self.session.as_ref().filter(|_| !self.abandoned) else { return };
        self.publisher.meet(session);
        self.publisher.ship_log(session);
        let report = self.shared.report();
        if report.phase != AttemptPhase::Ended {
            self.publisher.report(session, &report);
        }
        if let Some(progress) = &self.progress {
            self.publisher.progress(session, progress);
        }
        // Past its lease an attempt publishes no state to continue from; its end is for the scheduler to judge, and
        // the state that the next attempt continues from is part of it.
        let leased = orders.lease.is_some_and(|renewal| !renewal.left(Instant::now()).is_zero());
        let end = self.record.end.as_ref().filter(|_| matches!(self.stage, Stage::Reported));
        let said = match self.record.checkpoint {
            Some(artifact) if leased || end.is_some() => self.publisher.checkpoint(session, artifact),
            _ => true,
        };
        if let Some(end) = end.filter(|_| said) {
            self.publisher.end(session, end);
            self.shared.lock_report().phase = AttemptPhase::Ended;
        }
    }

    fn save(&self) {
        if let Err(error) = self.folder.save(&self.record) {
            // Only a restart of the agent would miss it, and then store the same again.
            tracing::warn!(folder = %self.folder.path.display(), %error, "agent.json not written");
        }
    }
}
