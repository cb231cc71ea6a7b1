//! Requests with several replies: a job watched, a log followed.

use std::sync::Arc;
use std::time::Duration;

use motley_scheduler_core::id::{AttemptId, JobId};
use motley_scheduler_core::wire::client::{JobView, Refusal, RefusalKind, ToClient};
use motley_scheduler_link::settings::LOG_CHUNK_BYTES;
use motley_scheduler_link::{Channel, LinkError};

use super::Shared;
use super::client::unknown;

/// Twice a second is as often as anybody reads.
const WATCH_PAUSE: Duration = Duration::from_millis(500);

/// Some of what is shown changes without news: why a job waits depends on all the others.
const WATCH_ANYWAY: Duration = Duration::from_secs(5);

/// Log lines come in bursts; a burst is worth one message.
const LOG_PAUSE: Duration = Duration::from_millis(50);

/// Which log, from where, and for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub job: JobId,
    pub attempt: Option<u32>,
    pub offset: u64,
    pub follow: bool,
}

/// Sends the job whenever it differs from what was sent last, until it has ended. Returns the last reply.
pub(super) async fn watch(
    channel: &mut Channel,
    shared: &Shared,
    job: JobId,
) -> Result<Result<ToClient, Refusal>, LinkError> {
    let mut news = shared.watchers.subscribe(job);
    let mut sent: Option<JobView> = None;
    loop {
        news.mark_unchanged();
        let view = match shared.engine.look(move |cluster| cluster.job(job)).await {
            Ok(Some(view)) => view,
            Ok(None) => return Ok(Err(unknown(job))),
            Err(refusal) => return Ok(Err(refusal)),
        };
        if sent.as_ref() != Some(&view) {
            channel.send(&ToClient::Job(Box::new(view.clone()))).await?;
        }
        if view.state.has_ended() {
            return Ok(Ok(ToClient::Done));
        }
        sent = Some(view);
        tokio::time::sleep(WATCH_PAUSE).await;
        // Whether news came or time passed: it is looked again.
        let _ = tokio::time::timeout(WATCH_ANYWAY, news.changed()).await;
    }
}

/// Sends a log from an offset on; following, also what comes later and the logs of later attempts, until the job
/// has ended. Returns the last reply.
pub(super) async fn logs(
    channel: &mut Channel,
    shared: &Arc<Shared>,
    wanted: Wanted,
) -> Result<Result<ToClient, Refusal>, LinkError> {
    let mut news = shared.watchers.subscribe(wanted.job);
    let mut reading: Option<AttemptId> = None;
    let mut offset = wanted.offset;
    loop {
        news.mark_unchanged();
        let state = match look(shared, wanted).await {
            Ok(state) => state,
            Err(refusal) => return Ok(Err(refusal)),
        };
        // Everything that was said before the state was what it is has to be in the file.
        shared.log_writer.flush().await;
        if let Some(attempt) = reading.or(state.attempt) {
            reading = Some(attempt);
            offset = match send_all(channel, shared, attempt, offset).await? {
                Ok(offset) => offset,
                Err(refusal) => return Ok(Err(refusal)),
            };
        }
        if reading != state.attempt && wanted.follow {
            // A newer attempt has begun.
            reading = state.attempt;
            offset = 0;
            continue;
        }
        if state.has_ended || !wanted.follow {
            return Ok(Ok(ToClient::Done));
        }
        // News that never come are no reason to hang: it is looked again.
        let _ = tokio::time::timeout(WATCH_ANYWAY, news.changed()).await;
        tokio::time::sleep(LOG_PAUSE).await;
    }
}

struct State {
    has_ended: bool,
    /// The attempt asked for, else the newest.
    attempt: Option<AttemptId>,
}

async fn look(shared: &Shared, wanted: Wanted) -> Result<State, Refusal> {
    let Wanted { job, .. } = wanted;
    let (view, newest) =
        shared.engine.look(move |cluster| (cluster.job(job), cluster.newest_attempt(job))).await?;
    let view = view.ok_or_else(|| unknown(job))?;
    let Some(number) = wanted.attempt else {
        return Ok(State { has_ended: view.state.has_ended(), attempt: newest });
    };
    let attempt = view.attempts.iter().find(|attempt| attempt.attempt.number == number);
    let attempt = attempt.ok_or_else(|| {
        Refusal::new(RefusalKind::NotFound, format!("job {job} has no attempt {number}"))
            .with_hint(format!("`ctl show {job}` lists them"))
    })?;
    let has_ended = attempt.ended.is_some() || view.state.has_ended();
    Ok(State { has_ended, attempt: Some(attempt.attempt) })
}

/// Sends what the log has from `offset` on, and returns where it ends.
async fn send_all(
    channel: &mut Channel,
    shared: &Arc<Shared>,
    attempt: AttemptId,
    mut offset: u64,
) -> Result<Result<u64, Refusal>, LinkError> {
    loop {
        let logs = shared.logs.clone();
        let read = tokio::task::spawn_blocking(move || logs.read(attempt, offset, LOG_CHUNK_BYTES)).await;
        let bytes = match read {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => return Ok(Err(unreadable(attempt, &error))),
            Err(error) => return Ok(Err(unreadable(attempt, &error))),
        };
        if bytes.is_empty() {
            return Ok(Ok(offset));
        }
        let end = offset + bytes.len() as u64;
        channel.send(&ToClient::Log { attempt, offset, bytes }).await?;
        offset = end;
    }
}

fn unreadable(attempt: AttemptId, error: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(RefusalKind::Failed, format!("the log of attempt {attempt} cannot be read: {error}"))
}
