//! Attempts end, and what follows: the job's end, or a new attempt after a pause.

use super::machine::Cluster;
use super::state::{Attempt, JobPhase};
use super::{Change, Handled};
use crate::artifact::ArtifactRef;
use crate::failure::{FailureReason, RETRIES_PER_HOUR_MAX, RetryClass};
use crate::id::{AttemptId, JobId};
use crate::unit::{Moment, Span};
use crate::wire::agent::Outcome;

/// The pause before the first retry of an hour; doubled for each further one.
const PAUSE_FIRST: Span = Span::from_seconds(1);

const HOUR: Span = Span::from_seconds(3600);

/// Longest message of a failure that is kept.
const MESSAGE_BYTES_MAX: usize = 4096;

// The longest pause, 2^(5-1) s, lies well within the hour in which retries are counted.
const _: () = assert!(RETRIES_PER_HOUR_MAX < 10);

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Retry {
        not_before: Moment,
    },
    GiveUp,
    /// So many retries within an hour.
    TooOften,
}

impl Cluster {
    /// The attempt is over. `attempt` is the job's current one.
    pub(super) fn end_attempt(
        &mut self,
        out: &mut Handled,
        attempt: AttemptId,
        outcome: Outcome,
        output: Option<ArtifactRef>,
    ) {
        let at = self.live.now;
        let job = attempt.job;
        let cancel_asked = self.state.jobs.get(&job).is_some_and(|job| job.cancel_asked.is_some());
        let outcome = match outcome {
            Outcome::Succeeded => Outcome::Succeeded,
            _ if cancel_asked => Outcome::Cancelled,
            // Nobody asked for it: something on the node stopped the runner.
            Outcome::Cancelled => {
                let message = "the attempt was stopped on its node".to_owned();
                Outcome::Failed { reason: FailureReason::Preempted, message }
            }
            Outcome::Failed { reason, message } => {
                Outcome::Failed { reason, message: shorten(message, MESSAGE_BYTES_MAX) }
            }
        };
        let reason = match &outcome {
            Outcome::Failed { reason, .. } => Some(*reason),
            Outcome::Succeeded | Outcome::Cancelled => None,
        };
        self.record(out, Change::AttemptEnded { attempt, reason, at });
        self.live.attempts.remove(&attempt);
        self.live.look_again = true;
        match self.verdict(job, &outcome) {
            Verdict::Retry { not_before } => {
                self.record(out, Change::JobRequeued { job, not_before });
                self.due_by(not_before);
                self.job_changed(out, job);
            }
            Verdict::GiveUp => self.end_job(out, job, outcome, output),
            Verdict::TooOften => {
                let outcome = match outcome {
                    Outcome::Failed { reason, message } => Outcome::Failed {
                        reason,
                        message: format!(
                            "given up after {RETRIES_PER_HOUR_MAX} retries within an hour: {message}"
                        ),
                    },
                    other => other,
                };
                self.end_job(out, job, outcome, output);
            }
        }
    }

    /// The job is over. Others may wait for its result.
    pub(super) fn end_job(
        &mut self,
        out: &mut Handled,
        job: JobId,
        outcome: Outcome,
        output: Option<ArtifactRef>,
    ) {
        debug_assert!(!matches!(self.state.jobs[&job].phase, JobPhase::Ended { .. }));
        self.record(out, Change::JobEnded { job, outcome, output, at: self.live.now });
        self.live.look_again = true;
        self.job_changed(out, job);
    }

    fn verdict(&self, job: JobId, outcome: &Outcome) -> Verdict {
        match (outcome, self.state.jobs.get(&job)) {
            (Outcome::Failed { reason, .. }, Some(job)) => verdict(&job.attempts, *reason, self.live.now),
            _ => Verdict::GiveUp,
        }
    }
}

/// What follows the last of `attempts`, which ended for `reason`.
fn verdict(attempts: &[Attempt], reason: FailureReason, now: Moment) -> Verdict {
    let ends = attempts.iter().filter_map(|attempt| attempt.ended);
    match reason.retry() {
        RetryClass::Never => Verdict::GiveUp,
        RetryClass::Once => {
            let same = ends.filter(|(_, ended)| *ended == Some(reason)).count();
            let not_before = now.after(PAUSE_FIRST);
            if same > 1 { Verdict::GiveUp } else { Verdict::Retry { not_before } }
        }
        RetryClass::Elsewhere => {
            let recent = |(at, reason): &(Moment, Option<FailureReason>)| {
                now.since(*at) < HOUR && reason.is_some_and(|reason| reason.retry() != RetryClass::Never)
            };
            let retries = ends.filter(recent).count();
            if retries > RETRIES_PER_HOUR_MAX {
                return Verdict::TooOften;
            }
            let factor = 1 << retries.saturating_sub(1);
            let pause = Span { milliseconds: PAUSE_FIRST.milliseconds * factor };
            Verdict::Retry { not_before: now.after(pause) }
        }
    }
}

/// At most `bytes_max` bytes, cut between characters.
fn shorten(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        let end = (0..=bytes_max).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}
