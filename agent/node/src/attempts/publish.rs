//! What an attempt tells the scheduler. Everything is state that is said again on every new connection, so that
//! nothing depends on a message having arrived.

use std::time::{Duration, Instant};

use motley_scheduler_core::artifact::ArtifactRef;
use motley_scheduler_core::id::{AttemptId, Epoch};
use motley_scheduler_core::wire::agent::{AttemptReport, FromAgent, Progress};

use super::Session;
use super::folder::End;
use super::tail::LogTail;

/// Log bytes of one message: far below the frame limit, so that logs do not hold up beats.
const LOG_CHUNK_BYTES: usize = 32 << 10;

/// An end that nobody has recorded is reported again after this.
const END_AGAIN: Duration = Duration::from_secs(15);

/// What was said on the connection of this moment.
#[derive(Debug)]
pub(crate) struct Publisher {
    attempt: AttemptId,
    epoch: Epoch,
    session: u64,
    report: Option<AttemptReport>,
    progress: Option<Progress>,
    checkpoint: Option<ArtifactRef>,
    end_at: Option<Instant>,
    pub(crate) log: LogTail,
}

impl Publisher {
    pub(crate) fn new(attempt: AttemptId, epoch: Epoch, log: LogTail) -> Self {
        Publisher {
            attempt,
            epoch,
            session: 0,
            report: None,
            progress: None,
            checkpoint: None,
            end_at: None,
            log,
        }
    }

    /// Begins anew when the connection is a new one. The agent's own report has named the attempt already.
    pub(crate) fn meet(&mut self, session: &Session) {
        if self.session == session.number {
            return;
        }
        self.session = session.number;
        self.report = None;
        self.progress = None;
        self.checkpoint = None;
        self.end_at = None;
        self.log.rewind();
    }

    pub(crate) fn report(&mut self, session: &Session, report: &AttemptReport) {
        if self.report.as_ref() != Some(report) && send(session, FromAgent::Attempt(report.clone())) {
            self.report = Some(report.clone());
        }
    }

    pub(crate) fn progress(&mut self, session: &Session, progress: &Progress) {
        let (attempt, epoch) = (self.attempt, self.epoch);
        let message = || FromAgent::Progress { attempt, epoch, progress: progress.clone() };
        if self.progress.as_ref() != Some(progress) && send(session, message()) {
            self.progress = Some(progress.clone());
        }
    }

    /// Whether the scheduler has been told, now or before.
    pub(crate) fn checkpoint(&mut self, session: &Session, artifact: ArtifactRef) -> bool {
        let message = FromAgent::CheckpointStored { attempt: self.attempt, epoch: self.epoch, artifact };
        if self.checkpoint != Some(artifact) && send(session, message) {
            self.checkpoint = Some(artifact);
        }
        self.checkpoint == Some(artifact)
    }

    /// Sends what the log has grown by, as far as there is room.
    pub(crate) fn ship_log(&mut self, session: &Session) {
        while let Some((offset, bytes)) = self.log.next(LOG_CHUNK_BYTES) {
            let count = bytes.len();
            if !send(session, FromAgent::Log { attempt: self.attempt, epoch: self.epoch, offset, bytes }) {
                return;
            }
            self.log.sent(count);
        }
    }

    pub(crate) fn end(&mut self, session: &Session, end: &End) {
        if self.end_at.is_some_and(|at| at.elapsed() < END_AGAIN) {
            return;
        }
        let End { outcome, output } = end.clone();
        let message = FromAgent::Ended { attempt: self.attempt, epoch: self.epoch, outcome, output };
        if send(session, message) {
            self.end_at = Some(Instant::now());
        }
    }
}

/// Whether there was room. There is none only while the connection is stuck or gone; the next look tries again.
fn send(session: &Session, message: FromAgent) -> bool {
    session.outbox.try_send(message).is_ok()
}
