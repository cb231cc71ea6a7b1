//! What users ask: one stream a request, authorized before anything is looked at.

use std::sync::Arc;

use motley_scheduler_core::artifact::FileEntry;
use motley_scheduler_core::authorize::{Operation, authorize};
use motley_scheduler_core::cluster::{Event, Submission};
use motley_scheduler_core::id::JobId;
use motley_scheduler_core::unit::{Bytes, Span};
use motley_scheduler_core::wire::client::{FromClient, JobView, Refusal, RefusalKind, ToClient, TokenGrant};
use motley_scheduler_core::wire::codec::{self, Limit};
use motley_scheduler_core::wire::join::Principal;
use motley_scheduler_link::{Channel, LinkError, Token};

use super::{Shared, follow};
use crate::engine::Answer;

/// Jobs of one list: the cluster is not looked at for long, and whoever wants more asks again.
const LISTED_JOBS: usize = 1000;

/// Bytes of one list: a quarter of the limit of a message, and the first job is taken whatever its size.
const LISTED_BYTES: usize = Limit::Client.bytes() / 4;

/// Bytes of the line that is left of a job's message.
const LISTED_MESSAGE: usize = 200;

pub(super) async fn serve(
    mut channel: Channel,
    shared: Arc<Shared>,
    principal: Principal,
) -> Result<(), LinkError> {
    let request: FromClient = channel.receiver.receive_first("request").await?;
    if let Err(refusal) = check(&request, &principal, &shared).await {
        tracing::warn!(?principal, "request denied: {}", refusal.message);
        channel.send(&ToClient::Refused(refusal)).await?;
        channel.finish();
        return Ok(());
    }
    let reply = match request {
        FromClient::Logs { job, attempt, offset, follow } => {
            let wanted = follow::Wanted { job, attempt, offset, follow };
            follow::logs(&mut channel, &shared, wanted).await?
        }
        FromClient::Watch { job } => follow::watch(&mut channel, &shared, job).await?,
        other => answer(other, &shared, &principal).await,
    };
    channel.send(&reply.unwrap_or_else(ToClient::Refused)).await?;
    channel.finish();
    Ok(())
}

async fn check(request: &FromClient, principal: &Principal, shared: &Shared) -> Result<(), Refusal> {
    let owns = match request {
        FromClient::Cancel { job } => owns(*job, principal, shared).await?,
        _ => false,
    };
    Ok(authorize(principal, Operation::of(request, owns))?)
}

/// Whether the job is the asker's. A job that does not exist is nobody's secret.
async fn owns(job: JobId, principal: &Principal, shared: &Shared) -> Result<bool, Refusal> {
    let Principal::User { name, .. } = principal else { return Ok(false) };
    let name = name.clone();
    shared.engine.look(move |cluster| cluster.owner(job).is_none_or(|owner| owner == name)).await
}

async fn answer(request: FromClient, shared: &Shared, principal: &Principal) -> Result<ToClient, Refusal> {
    match request {
        FromClient::Submit { document, files, memory } => {
            submit(document, files, memory, (shared, principal)).await
        }
        FromClient::Jobs => jobs(None, LISTED_JOBS, shared).await,
        FromClient::JobsBefore { before, count } => {
            jobs(before, usize::try_from(count).unwrap_or(usize::MAX), shared).await
        }
        FromClient::Job { job } => {
            let view = shared.engine.look(move |cluster| cluster.job(job)).await?;
            Ok(ToClient::Job(Box::new(view.ok_or_else(|| unknown(job))?)))
        }
        FromClient::Cancel { job } => {
            match shared.engine.ask(|ticket| Event::CancelRequested { ticket, job }).await {
                Answer::Cancelled(job) => Ok(ToClient::Cancelled { job }),
                other => Err(refused(other)),
            }
        }
        FromClient::Nodes => Ok(ToClient::Nodes(shared.engine.look(|cluster| cluster.nodes()).await?)),
        FromClient::Devices => Ok(ToClient::Devices(shared.engine.look(|cluster| cluster.devices()).await?)),
        FromClient::Artifacts { job } => {
            let artifacts = shared.engine.look(move |cluster| cluster.artifacts(job)).await?;
            Ok(ToClient::Artifacts(artifacts.ok_or_else(|| unknown(job))?))
        }
        FromClient::CreateToken { grants, valid } => create_token(grants, valid, shared).await,
        FromClient::Status => {
            let status =
                |cluster: &motley_scheduler_core::cluster::Cluster| cluster.status(env!("CARGO_PKG_VERSION"));
            Ok(ToClient::Status(shared.engine.look(status).await?))
        }
        FromClient::Logs { .. } | FromClient::Watch { .. } => {
            Err(Refusal::new(RefusalKind::Failed, "this request has several replies"))
        }
    }
}

async fn jobs(before: Option<JobId>, count: usize, shared: &Shared) -> Result<ToClient, Refusal> {
    let count = count.min(LISTED_JOBS);
    let newest_first = shared.engine.look(move |cluster| cluster.jobs_before(before, count)).await?;
    Ok(ToClient::Jobs(listed(newest_first)))
}

/// As many of the newest as one message holds, the newest last.
fn listed(newest_first: Vec<JobView>) -> Vec<JobView> {
    let mut bytes = 0;
    let short = newest_first.into_iter().map(shorten);
    let mut jobs: Vec<JobView> = short
        .take_while(|job| {
            let is_first = bytes == 0;
            // One that cannot be encoded would not fit alone either.
            bytes += codec::encode(job, Limit::Client).map_or(LISTED_BYTES, |encoded| encoded.len());
            is_first || bytes <= LISTED_BYTES
        })
        .collect();
    jobs.reverse();
    jobs
}

/// What a list shows of a job: no document, and one line of its message.
fn shorten(job: JobView) -> JobView {
    let line = job.message.as_deref().and_then(|message| message.lines().next());
    let message = line.map(|line| match line.char_indices().find(|(at, _)| *at >= LISTED_MESSAGE) {
        Some((end, _)) => format!("{} ...", &line[..end]),
        None => line.to_owned(),
    });
    JobView { document: String::new(), message, ..job }
}

async fn submit(
    document: String,
    files: Vec<FileEntry>,
    memory: Vec<Bytes>,
    (shared, principal): (&Shared, &Principal),
) -> Result<ToClient, Refusal> {
    let Principal::User { name, .. } = principal else {
        return Err(Refusal::new(RefusalKind::Denied, "a node may not submit jobs"));
    };
    let submission = Submission::new(document, files, memory, name)?;
    let hashes: Vec<_> = submission.files.iter().map(|file| file.hash).collect();
    let missing = shared.blobs.missing(&hashes).await;
    let missing = missing.map_err(|error| Refusal::from_text(RefusalKind::Failed, &error.to_string()))?;
    if let Some(file) = submission.files.iter().find(|file| missing.contains(&file.hash)) {
        let message = format!("file `{}` is not stored", file.path);
        return Err(Refusal::new(RefusalKind::Failed, message).with_hint("upload it before the job"));
    }
    match shared.engine.ask(|ticket| Event::JobSubmitted { ticket, submission }).await {
        Answer::Submitted(job) => Ok(ToClient::Submitted { job }),
        other => Err(refused(other)),
    }
}

async fn create_token(grants: TokenGrant, valid: Span, shared: &Shared) -> Result<ToClient, Refusal> {
    let failed = |error: LinkError| Refusal::new(RefusalKind::Failed, error.to_string());
    let token = Token::generate(&shared.fingerprint).map_err(failed)?;
    let secret_hash = token.secret_hash();
    let create = |ticket| Event::TokenCreated { ticket, secret_hash, grants, valid };
    match shared.engine.ask(create).await {
        Answer::TokenStored => Ok(ToClient::Token { token: token.to_string(), valid }),
        other => Err(refused(other)),
    }
}

fn refused(answer: Answer) -> Refusal {
    match answer {
        Answer::Refused(refusal) => refusal,
        other => Refusal::new(RefusalKind::Failed, format!("the scheduler answered {other:?}")),
    }
}

pub(super) fn unknown(job: JobId) -> Refusal {
    Refusal::new(RefusalKind::NotFound, format!("no job {job}")).with_hint("`ctl jobs` lists them")
}

#[cfg(test)]
mod tests {
    use motley_scheduler_core::document::Priority;
    use motley_scheduler_core::failure::FailureReason;
    use motley_scheduler_core::unit::Moment;
    use motley_scheduler_core::wire::client::JobState;

    use super::*;

    fn failed(job: u64, message: &str) -> JobView {
        JobView {
            job: JobId(job),
            name: "n".repeat(200),
            kind: "train".into(),
            priority: Priority::Normal,
            state: JobState::Failed,
            waiting: None,
            reason: Some(FailureReason::Internal),
            message: Some(message.into()),
            submitted: Moment(1),
            started: None,
            ended: Some(Moment(2)),
            attempts: vec![],
            progress: None,
            endpoint: None,
            output: None,
            checkpoint: None,
            document: "d".repeat(5000),
        }
    }

    #[test]
    fn list_of_any_number_of_failures_fits_one_message() {
        let long = format!("{}\nhint: {}", "é".repeat(1000), "x".repeat(2000));
        let newest_first: Vec<JobView> = (1..=15_000).rev().map(|job| failed(job, &long)).collect();
        let jobs = listed(newest_first);
        assert_eq!(jobs.last().map(|job| job.job), Some(JobId(15_000)), "the newest are kept");
        assert!(jobs.len() > 1000 && jobs.is_sorted_by_key(|job| job.job), "{} jobs", jobs.len());
        let message = jobs[0].message.as_deref().unwrap();
        assert!(message.ends_with("é ...") && message.len() < 210 && !message.contains('\n'), "{message}");
        codec::encode(&ToClient::Jobs(jobs), Limit::Client).unwrap();
        let huge = JobView { name: "n".repeat(LISTED_BYTES + 1), ..failed(2, "short") };
        assert_eq!(listed(vec![huge, failed(1, "short")]).len(), 1, "one comes whatever its size");
    }
}
