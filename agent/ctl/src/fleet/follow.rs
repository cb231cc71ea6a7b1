//! Following a job: its changes and its log, over restarts of the scheduler.
//!
//! Two streams run side by side, `Watch` and `Logs`. When the connection breaks, both are opened again until
//! [`PATIENCE`] has passed; log bytes that were already printed are dropped by their offsets.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use motley_scheduler_core::id::{AttemptId, JobId};
use motley_scheduler_core::wire::client::{FromClient, JobState, JobView, ToClient};

use super::{Fleet, unexpected};
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::output::progress::ProgressDisplay;

/// How long a scheduler may be away before a follower gives up: longer than a restart takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries to reach it.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// How long after a job's end its last log lines are waited for.
const LOG_TAIL: Duration = Duration::from_secs(5);

/// Which log.
#[derive(Debug, Clone, Copy)]
pub struct LogRequest {
    pub job: JobId,
    pub attempt: Option<u32>,
    pub follow: bool,
}

/// What a follower shows on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    ProgressAndLogs,
    Nothing,
}

/// Follows until the job has ended, and returns its last view.
pub async fn to_the_end(
    fleet: &mut Fleet,
    job: JobId,
    output: &Output,
    shown: Shown,
) -> Result<JobView, Failure> {
    let silent = Output { json: true, terminal: false };
    let mut display = ProgressDisplay::new(if shown == Shown::Nothing { &silent } else { output });
    let mut printed = Printed::default();
    let mut ignore = |_: &JobView| {};
    let result = follow(fleet, job, &mut display, &mut printed, &mut ignore).await;
    display.finish();
    result
}

/// Follows a job and reports each view as well, such as for the endpoint of a serving job.
pub async fn with_views(
    fleet: &mut Fleet,
    job: JobId,
    output: &Output,
    seen: &mut (dyn FnMut(&JobView) + Send),
) -> Result<JobView, Failure> {
    let mut display = ProgressDisplay::new(output);
    let mut printed = Printed::default();
    let result = follow(fleet, job, &mut display, &mut printed, seen).await;
    display.finish();
    result
}

/// The exit code of a followed job.
pub fn judge(job: &JobView) -> Result<(), Failure> {
    match job.state {
        JobState::Failed => {
            let reason = job.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
            let message = job.message.as_deref().unwrap_or("no message");
            Err(Failure::failed(message).while_doing(format!("job {} failed{reason}", job.job)))
        }
        JobState::Cancelled => Err(Failure::failed(format!("job {} was cancelled", job.job))),
        _ => Ok(()),
    }
}

/// Log bytes already passed on, by attempt.
#[derive(Debug, Default)]
struct Printed {
    until: BTreeMap<AttemptId, u64>,
}

impl Printed {
    /// The part of `bytes` at `offset` that is new.
    fn new_part<'a>(&mut self, attempt: AttemptId, offset: u64, bytes: &'a [u8]) -> &'a [u8] {
        let until = self.until.entry(attempt).or_default();
        let known = usize::try_from(until.saturating_sub(offset)).unwrap_or(usize::MAX);
        *until = (*until).max(offset + bytes.len() as u64);
        bytes.get(known..).unwrap_or_default()
    }
}

async fn follow(
    fleet: &mut Fleet,
    job: JobId,
    display: &mut ProgressDisplay,
    printed: &mut Printed,
    seen: &mut (dyn FnMut(&JobView) + Send),
) -> Result<JobView, Failure> {
    let mut lost_since: Option<Instant> = None;
    loop {
        match follow_once(fleet, job, display, printed, seen).await {
            Ok(view) => return Ok(view),
            Err(failure) if failure.exit == Exit::Unreachable => {
                wait_and_reopen(fleet, failure, &mut lost_since).await?;
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// Waits and connects again; gives up with the first failure when patience has run out.
async fn wait_and_reopen(
    fleet: &mut Fleet,
    failure: Failure,
    lost_since: &mut Option<Instant>,
) -> Result<(), Failure> {
    let since = *lost_since.get_or_insert_with(|| {
        tracing::info!("the scheduler is away: trying to reach it again");
        Instant::now()
    });
    while since.elapsed() < PATIENCE {
        tokio::time::sleep(RETRY_INTERVAL).await;
        match fleet.reopen().await {
            Ok(()) => {
                *lost_since = None;
                return Ok(());
            }
            Err(failure) if failure.exit == Exit::Unreachable => {}
            Err(failure) => return Err(failure),
        }
    }
    Err(failure.hint("the job goes on without this command; look later with `ctl show`"))
}

async fn follow_once(
    fleet: &Fleet,
    job: JobId,
    display: &mut ProgressDisplay,
    printed: &mut Printed,
    seen: &mut (dyn FnMut(&JobView) + Send),
) -> Result<JobView, Failure> {
    let mut views = fleet.client().stream(FromClient::Watch { job }).await?;
    let logs = FromClient::Logs { job, attempt: None, offset: 0, follow: true };
    let mut logs = fleet.client().stream(logs).await?;
    let mut last: Option<JobView> = None;
    let mut logs_open = true;
    loop {
        tokio::select! {
            view = views.next() => match view? {
                Some(ToClient::Job(view)) => {
                    seen(&view);
                    show(&view, display);
                    let ended = view.state.has_ended();
                    last = Some(*view);
                    if ended {
                        break;
                    }
                }
                Some(ToClient::Refused(refusal)) => return Err(refusal.into()),
                Some(ToClient::Done) | None => break,
                Some(other) => return Err(unexpected(&other)),
            },
            reply = logs.next(), if logs_open => logs_open = pass_log(reply?, display, printed)?,
        }
    }
    let rest = async {
        while logs_open {
            logs_open = pass_log(logs.next().await?, display, printed)?;
        }
        Ok::<(), Failure>(())
    };
    if tokio::time::timeout(LOG_TAIL, rest).await.is_err() {
        tracing::debug!("the log's end did not come in time");
    }
    last.ok_or_else(|| Failure::unreachable("the scheduler ended the watch without a word"))
}

/// Whether the log stream goes on.
fn pass_log(
    reply: Option<ToClient>,
    display: &mut ProgressDisplay,
    printed: &mut Printed,
) -> Result<bool, Failure> {
    match reply {
        Some(ToClient::Log { attempt, offset, bytes }) => {
            display.log(printed.new_part(attempt, offset, &bytes));
            Ok(true)
        }
        Some(ToClient::Done) | None => Ok(false),
        Some(ToClient::Refused(refusal)) => {
            tracing::debug!(reason = %refusal.message, "no log");
            Ok(false)
        }
        Some(other) => Err(unexpected(&other)),
    }
}

fn show(view: &JobView, display: &mut ProgressDisplay) {
    match (&view.waiting, &view.progress) {
        _ if view.state.has_ended() => {}
        (Some(waiting), _) => display.say(&format!("waiting: {waiting}")),
        (None, Some(progress)) => display.update(progress),
        (None, None) => display.say(crate::output::view::state_name(view.state)),
    }
}

/// Passes a log on, in order and without repetition.
pub async fn logs(
    fleet: &mut Fleet,
    request: LogRequest,
    pass: &mut (dyn FnMut(AttemptId, &[u8]) + Send),
) -> Result<(), Failure> {
    let mut printed = Printed::default();
    let mut lost_since = None;
    loop {
        match logs_once(fleet, request, &mut printed, pass).await {
            Err(failure) if failure.exit == Exit::Unreachable && request.follow => {
                wait_and_reopen(fleet, failure, &mut lost_since).await?;
            }
            result => return result,
        }
    }
}

async fn logs_once(
    fleet: &Fleet,
    request: LogRequest,
    printed: &mut Printed,
    pass: &mut (dyn FnMut(AttemptId, &[u8]) + Send),
) -> Result<(), Failure> {
    let LogRequest { job, attempt, follow } = request;
    let mut replies = fleet.client().stream(FromClient::Logs { job, attempt, offset: 0, follow }).await?;
    loop {
        match replies.next().await? {
            Some(ToClient::Log { attempt, offset, bytes }) => {
                pass(attempt, printed.new_part(attempt, offset, &bytes));
            }
            Some(ToClient::Done) => return Ok(()),
            Some(ToClient::Refused(refusal)) => return Err(refusal.into()),
            Some(other) => return Err(unexpected(&other)),
            None => return Err(Failure::unreachable("the log broke off")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_bytes_pass_once_whatever_is_sent_again() {
        let mut printed = Printed::default();
        let first = AttemptId { job: JobId(1), number: 1 };
        let second = AttemptId { job: JobId(1), number: 2 };
        assert_eq!(printed.new_part(first, 0, b"abc"), b"abc");
        assert_eq!(printed.new_part(first, 0, b"abcde"), b"de");
        assert_eq!(printed.new_part(first, 1, b"bc"), b"");
        assert_eq!(printed.new_part(second, 0, b"abc"), b"abc");
        assert_eq!(printed.new_part(first, 5, b"f"), b"f");
    }
}
