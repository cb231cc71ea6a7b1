//! What users ask: one stream a request, authorized before anything is looked at.

use std::sync::Arc;

use motley_scheduler_core::artifact::FileEntry;
use motley_scheduler_core::authorize::{Operation, authorize};
use motley_scheduler_core::cluster::{Event, Submission};
use motley_scheduler_core::id::JobId;
use motley_scheduler_core::unit::{Bytes, Span};
use motley_scheduler_core::wire::client::{FromClient, JobView, Refusal, RefusalKind, ToClient, TokenGrant};
use motley_scheduler_core::wire::join::Principal;
use motley_scheduler_link::{Channel, LinkError, Token};

use super::{Shared, follow};
use crate::engine::Answer;

/// Documents in a list of jobs: above it the list comes without them, far below the limit of a message (16 MiB).
const LISTED_DOCUMENTS: usize = 4 << 20;

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
        FromClient::Jobs => Ok(ToClient::Jobs(listed(shared.engine.look(|cluster| cluster.jobs()).await?))),
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

/// Without their documents when there are very many.
fn listed(mut jobs: Vec<JobView>) -> Vec<JobView> {
    let documents: usize = jobs.iter().map(|job| job.document.len()).sum();
    if documents > LISTED_DOCUMENTS {
        jobs.iter_mut().for_each(|job| job.document = String::new());
    }
    jobs
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
