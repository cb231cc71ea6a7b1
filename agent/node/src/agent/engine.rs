//! The agent's loop: connect, report, obey, beat; again when the connection is gone.
//!
//! ```text
//! dial ──connected──▶ Report ──Welcome──▶ beats, orders, renewals ──connection gone──▶ wait (jitter) ──▶ dial
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use motley_scheduler_core::cluster::{BEAT_MIN, Clocks};
use motley_scheduler_core::failure::FailureReason;
use motley_scheduler_core::id::{AttemptId, Epoch};
use motley_scheduler_core::unit::Span;
use motley_scheduler_core::wire::Message;
use motley_scheduler_core::wire::agent::{Assignment, AttemptReport, FromAgent, Outcome, ToAgent};
use tokio::sync::{mpsc, watch};

use super::facts::Facts;
use super::random;
use crate::attempts::driver::{Driver, Site};
use crate::attempts::folder::AttemptFolder;
use crate::attempts::{Attempt, Orders, Renewal, Session, Sessions};
use crate::failure::Failure;
use crate::runner::lease::duration;
use crate::runner::{Embedded, RunnerSpec};
use crate::settings::{NodeSettings, RunnerCommand};
use crate::transfer::disk_hint;
use crate::transfer::download::BlobCache;
use crate::uplink::{Connection, Uplink, UplinkError};

/// First wait before dialing again; doubled up to [`WAIT_MAX`].
const WAIT_MIN: Duration = Duration::from_millis(100);

/// A scheduler that is back is found within two seconds.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// A connection that lasted so long was a good one: the next is dialed without delay.
const STABLE: Duration = Duration::from_secs(5);

/// After a refusal: somebody has to do something first.
const WAIT_REFUSED: Duration = Duration::from_secs(10);

/// A renewal that was not answered is asked for again after this.
const RENEWAL_AGAIN: Duration = Duration::from_secs(60);

/// Attempts have this long to end with the agent; embedded runners that do not end by themselves are killed before.
const END: Duration = Duration::from_secs(12);

/// What every attempt is given of its node.
#[derive(Debug)]
pub(crate) struct Home {
    pub(crate) attempts: PathBuf,
    pub(crate) facts: Facts,
    pub(crate) threads: u32,
    pub(crate) settings: NodeSettings,
    pub(crate) embedded: Option<Embedded>,
}

pub(crate) struct Engine {
    uplink: Arc<dyn Uplink>,
    home: Home,
    site: Arc<Site>,
    attempts: BTreeMap<AttemptId, Attempt>,
    sessions: watch::Sender<Option<Session>>,
    /// How many connections there have been.
    connections: u64,
    beat: Span,
    keep_running: Span,
    renewal_asked: Option<Instant>,
}

/// Why a connection is over.
#[derive(Debug, PartialEq, Eq)]
enum Over {
    Lost,
    Refused,
    Stopped,
}

impl Engine {
    pub(crate) fn new(uplink: Arc<dyn Uplink>, home: Home, cache: BlobCache, runner: RunnerCommand) -> Self {
        let clocks = Clocks::default();
        Engine {
            uplink,
            home,
            site: Arc::new(Site { cache, runner }),
            attempts: BTreeMap::new(),
            sessions: watch::Sender::new(None),
            connections: 0,
            beat: clocks.beat,
            keep_running: clocks.keep_running,
            renewal_asked: None,
        }
    }

    /// Finds the attempts of an earlier agent.
    pub(crate) fn take_over(&mut self) -> std::io::Result<()> {
        for (folder, spec) in AttemptFolder::scan(&self.home.attempts)? {
            let attempt = spec.assignment.attempt;
            tracing::info!(%attempt, "attempt of an earlier agent found");
            self.drive(folder, spec, Orders::default());
        }
        Ok(())
    }

    /// Until `stopped` says so, or its other end is gone.
    pub(crate) async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        let mut wait = WAIT_MIN;
        let mut last_error = None;
        loop {
            let uplink = Arc::clone(&self.uplink);
            let connected = tokio::select! {
                connected = uplink.connect() => connected,
                () = told_to_stop(&mut stopped) => break,
            };
            let over = match connected {
                Ok(connection) => {
                    last_error = None;
                    let begin = Instant::now();
                    let over = self.serve(connection, &mut stopped).await;
                    self.sessions.send_replace(None);
                    if begin.elapsed() > STABLE {
                        wait = WAIT_MIN;
                    }
                    over
                }
                Err(error) => {
                    let over = if matches!(error, UplinkError::Lost(_)) { Over::Lost } else { Over::Refused };
                    // One line a change, however long it lasts.
                    if last_error.as_ref() != Some(&error) {
                        tracing::warn!(%error, "no connection to the scheduler, dialing again");
                    }
                    last_error = Some(error);
                    over
                }
            };
            let pause = match over {
                Over::Stopped => break,
                Over::Refused => WAIT_REFUSED,
                Over::Lost => wait,
            };
            // Agents that lost the same scheduler at the same moment do not come back at the same moment.
            let pause = pause.mul_f64(0.5 + 0.5 * random::fraction());
            wait = (wait * 2).min(WAIT_MAX);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = told_to_stop(&mut stopped) => break,
            }
        }
        self.end().await;
    }

    /// One connection, from the report to its end.
    async fn serve(&mut self, connection: Connection, stopped: &mut watch::Receiver<bool>) -> Over {
        let Connection { outbox, mut inbox, blobs, version } = connection;
        self.connections += 1;
        let mut welcome = false;
        let session = Session { number: self.connections, outbox, blobs };
        let attempts = self.reports();
        let Facts { node: facts, details } = self.home.facts.clone();
        let detailed = FromAgent::ReportDevices { facts, details, attempts: attempts.clone() };
        let report = match version >= detailed.since() {
            true => detailed,
            false => FromAgent::Report { facts: self.home.facts.without_details(), attempts },
        };
        if session.outbox.send(report).await.is_err() {
            return Over::Lost;
        }
        let mut beat_at = tokio::time::Instant::now() + duration(self.beat);
        loop {
            tokio::select! {
                message = inbox.recv() => match message {
                    Some(ToAgent::Refused { reason }) if !welcome => {
                        tracing::error!(reason, "the scheduler refuses this node");
                        return Over::Refused;
                    }
                    Some(message) => {
                        if matches!(message, ToAgent::Welcome { .. }) {
                            welcome = true;
                            tracing::info!(attempts = self.attempts.len(), "connected to the scheduler");
                            self.sessions.send_replace(Some(session.clone()));
                        }
                        self.obey(message, &session.outbox);
                    }
                    None => return Over::Lost,
                },
                () = tokio::time::sleep_until(beat_at) => {
                    beat_at = tokio::time::Instant::now() + duration(self.beat);
                    // No room means that the connection is stuck; its own idle limit ends it.
                    let _ = session.outbox.try_send(FromAgent::Beat { attempts: self.reports() });
                    self.renew_certificate(&session.outbox);
                }
                () = told_to_stop(stopped) => return Over::Stopped,
            }
        }
    }

    fn obey(&mut self, message: ToAgent, outbox: &mpsc::Sender<FromAgent>) {
        match message {
            ToAgent::Welcome { lease: _, beat, keep_running } => {
                self.beat = beat.max(BEAT_MIN);
                self.keep_running = keep_running;
            }
            ToAgent::Start(assignment) => self.start_attempt(*assignment, outbox),
            ToAgent::Stop { attempt, epoch, grace } => {
                self.order(attempt, epoch, |orders| orders.stop = Some(grace));
            }
            ToAgent::LeaseRenewed { attempts, lease } => {
                let renewal = Renewal { at: Instant::now(), lease, keep_running: self.keep_running };
                for (attempt, epoch) in attempts {
                    self.order(attempt, epoch, |orders| orders.lease = Some(renewal));
                }
            }
            ToAgent::EndRecorded { attempt, epoch } => {
                self.order(attempt, epoch, |orders| orders.end_recorded = true);
            }
            ToAgent::Stale { attempt, epoch } => {
                self.order(attempt, epoch, |orders| orders.stale = true);
            }
            ToAgent::LogStored { attempt, epoch, offset } => {
                self.order(attempt, epoch, |orders| orders.log_stored = Some(offset));
            }
            ToAgent::Certificate { certificate, .. } => match self.uplink.finish_renewal(&certificate) {
                Ok(()) => tracing::info!("certificate renewed"),
                Err(error) => tracing::error!(%error, "renewed certificate cannot be used"),
            },
            // Of one request, such as a renewal; that of the whole node comes in the place of the welcome.
            ToAgent::Refused { reason } => tracing::error!(reason, "the scheduler refuses a request"),
        }
    }

    /// Says something to an attempt of this epoch, if there is one.
    fn order(&self, attempt: AttemptId, epoch: Epoch, change: impl FnOnce(&mut Orders)) {
        if let Some(found) = self.attempts.get(&attempt)
            && found.shared.report().epoch == epoch
        {
            found.shared.order(change);
        }
    }

    fn start_attempt(&mut self, assignment: Assignment, outbox: &mpsc::Sender<FromAgent>) {
        let (attempt, epoch) = (assignment.attempt, assignment.epoch);
        if self.attempts.get(&attempt).is_some_and(|known| !known.task.is_finished()) {
            // Said again because the scheduler does not know that it arrived; or a mistake, which a report settles.
            return;
        }
        tracing::info!(%attempt, name = assignment.name, "attempt assigned");
        let renewal =
            Renewal { at: Instant::now(), lease: assignment.lease, keep_running: self.keep_running };
        let folder = AttemptFolder::new(&self.home.attempts, attempt);
        let created = self.spec(assignment).and_then(|spec| folder.create(&spec).map(|()| spec));
        match created {
            Ok(spec) => self.drive(folder, spec, Orders { lease: Some(renewal), ..Orders::default() }),
            Err(error) => {
                tracing::error!(%attempt, %error, "attempt cannot be begun");
                let path = folder.path.display();
                let text = format!("cannot begin in {path}: {error}{}", disk_hint(&error));
                let Failure { reason, message } = Failure::new(FailureReason::Infra, text);
                let outcome = Outcome::Failed { reason, message };
                // Lost with the connection, the next report does not name the attempt, which says the same.
                let _ = outbox.try_send(FromAgent::Ended { attempt, epoch, outcome, output: None });
            }
        }
    }

    fn spec(&self, assignment: Assignment) -> std::io::Result<RunnerSpec> {
        Ok(RunnerSpec {
            device_index: self.home.facts.backend_index(assignment.device),
            assignment,
            node: self.home.facts.node.name.clone(),
            threads: self.home.threads,
            keep_running: self.keep_running,
            settings: self.home.settings.clone(),
            nonce: random::nonce()?,
            embedded: self.home.embedded.clone(),
        })
    }

    fn drive(&mut self, folder: AttemptFolder, spec: RunnerSpec, orders: Orders) {
        let attempt = spec.assignment.attempt;
        let sessions: Sessions = self.sessions.subscribe();
        self.attempts.insert(attempt, Driver::start(Arc::clone(&self.site), folder, spec, sessions, orders));
    }

    /// Of every attempt that is not over; forgets those that are.
    fn reports(&mut self) -> Vec<AttemptReport> {
        self.attempts.retain(|_, attempt| !attempt.task.is_finished());
        self.attempts.values().map(|attempt| attempt.shared.report()).collect()
    }

    fn renew_certificate(&mut self, outbox: &mpsc::Sender<FromAgent>) {
        let due = self.uplink.renew_at().is_some_and(|at| SystemTime::now() >= at);
        if !due || self.renewal_asked.is_some_and(|at| at.elapsed() < RENEWAL_AGAIN) {
            return;
        }
        match self.uplink.begin_renewal() {
            Ok(certificate_request) => {
                self.renewal_asked = Some(Instant::now());
                let _ = outbox.try_send(FromAgent::RenewCertificate { certificate_request });
            }
            Err(error) => tracing::error!(%error, "certificate cannot be renewed"),
        }
    }

    /// Leaves the runners alone; embedded ones are stopped. Returns when nothing of this agent works on the attempts.
    async fn end(self) {
        let Engine { attempts, sessions, home, .. } = self;
        if home.embedded.is_some() {
            for attempt in attempts.values() {
                attempt.shared.order(|orders| orders.stale = true);
            }
        } else {
            // Their sign to end.
            drop(sessions);
        }
        let all = async {
            for (_, attempt) in attempts {
                let _ = attempt.task.await;
            }
        };
        if tokio::time::timeout(END, all).await.is_err() {
            tracing::warn!("attempts did not end in time");
        }
        tracing::info!("agent ends");
    }
}

/// Whether by word or because nobody is left to say it.
async fn told_to_stop(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|&stop| stop).await;
}
