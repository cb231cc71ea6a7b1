//! `ctl jobs`, `ctl show`, `ctl cancel`, `ctl nodes`, `ctl logs`: questions about the fleet.

use motley_scheduler_core::id::{JobId, NodeId};
use motley_scheduler_core::unit::Moment;
use motley_scheduler_core::wire::Message;
use motley_scheduler_core::wire::agent::DeviceDetails;
use motley_scheduler_core::wire::client::{FromClient, JobView, NodeView, StatusView, ToClient};
use serde_json::json;

use super::{Fleet, follow, unexpected};
use crate::arguments::{CancelArguments, Common, JobsArguments, LogsArguments, ShowArguments};
use crate::failure::Failure;
use crate::output::{Output, view};

pub async fn list(common: &Common, arguments: JobsArguments, output: &Output) -> Result<(), Failure> {
    let fleet = Fleet::open(common).await?;
    let now = scheduler_now(&fleet).await?;
    let wanted = if arguments.all { usize::MAX } else { arguments.limit as usize };
    let (jobs, more) = newest(&fleet, wanted).await?;
    output.data(
        || view::jobs_table(&jobs, now),
        || json!({ "jobs": jobs.iter().map(view::job_json).collect::<Vec<_>>(), "more": more }),
    );
    if more && !output.json {
        output.talk("there are older jobs: `ctl jobs --all` lists them too");
    }
    Ok(())
}

/// The newest jobs, the newest last, and whether there are older ones: asked for list by list.
async fn newest(fleet: &Fleet, wanted: usize) -> Result<(Vec<JobView>, bool), Failure> {
    let mut jobs: Vec<JobView> = Vec::new();
    loop {
        let before = jobs.first().map(|job| job.job);
        // One more than wanted tells whether there are more.
        let missing = wanted.saturating_sub(jobs.len()).saturating_add(1);
        let question = FromClient::JobsBefore { before, count: u32::try_from(missing).unwrap_or(u32::MAX) };
        // A scheduler of the version before gives everything at once.
        let is_known = question.since() <= fleet.client().version();
        let answer = fleet.ask(if is_known { question } else { FromClient::Jobs }).await?;
        let ToClient::Jobs(mut page) = answer else { return Err(unexpected(&answer)) };
        let is_last = page.is_empty() || !is_known;
        page.append(&mut jobs);
        jobs = page;
        if is_last || jobs.len() > wanted {
            let excess = jobs.len().saturating_sub(wanted);
            jobs.drain(..excess);
            return Ok((jobs, excess > 0));
        }
    }
}

pub async fn nodes(common: &Common, output: &Output) -> Result<(), Failure> {
    let fleet = Fleet::open(common).await?;
    let now = scheduler_now(&fleet).await?;
    match fleet.ask(FromClient::Nodes).await? {
        ToClient::Nodes(nodes) => {
            let details = device_details(&fleet).await?;
            let value = |node: &NodeView| view::node_json(node, &details);
            output.data(
                || view::nodes_table(&nodes, &details, now),
                || json!({ "nodes": nodes.iter().map(value).collect::<Vec<_>>() }),
            );
            Ok(())
        }
        other => Err(unexpected(&other)),
    }
}

/// Nothing from a scheduler that does not know the question yet.
async fn device_details(fleet: &Fleet) -> Result<Vec<(NodeId, Vec<DeviceDetails>)>, Failure> {
    if FromClient::Devices.since() > fleet.client().version() {
        return Ok(Vec::new());
    }
    match fleet.ask(FromClient::Devices).await? {
        ToClient::Devices(details) => Ok(details),
        other => Err(unexpected(&other)),
    }
}

pub async fn show(common: &Common, arguments: ShowArguments, output: &Output) -> Result<(), Failure> {
    let mut fleet = Fleet::open(common).await?;
    if arguments.watch {
        let job =
            follow::to_the_end(&mut fleet, arguments.job, output, follow::Shown::ProgressAndLogs).await?;
        print_job(&fleet, &job, output).await?;
        return follow::judge(&job);
    }
    let job = ask_job(&fleet, arguments.job).await?;
    print_job(&fleet, &job, output).await
}

async fn print_job(fleet: &Fleet, job: &JobView, output: &Output) -> Result<(), Failure> {
    let now = scheduler_now(fleet).await?;
    output.data(|| view::job_text(job, now), || view::job_json(job));
    Ok(())
}

pub async fn cancel(common: &Common, arguments: CancelArguments, output: &Output) -> Result<(), Failure> {
    let fleet = Fleet::open(common).await?;
    match fleet.ask(FromClient::Cancel { job: arguments.job }).await? {
        ToClient::Cancelled { job } => {
            output.data(|| format!("job {job} is being cancelled"), || json!({ "job": job.0 }));
            Ok(())
        }
        other => Err(unexpected(&other)),
    }
}

/// Prints log bytes as they are; with `--json` one object a piece, the text in it lossy.
pub async fn logs(common: &Common, arguments: LogsArguments, output: &Output) -> Result<(), Failure> {
    let mut fleet = Fleet::open(common).await?;
    let request =
        follow::LogRequest { job: arguments.job, attempt: arguments.attempt, follow: arguments.follow };
    follow::logs(&mut fleet, request, &mut |attempt, bytes| {
        if output.json {
            let text = String::from_utf8_lossy(bytes);
            output.json_line(&json!({ "job": attempt.job.0, "attempt": attempt.number, "text": text }));
        } else {
            output.bytes(bytes);
        }
    })
    .await
}

pub async fn ask_job(fleet: &Fleet, job: JobId) -> Result<JobView, Failure> {
    match fleet.ask(FromClient::Job { job }).await? {
        ToClient::Job(job) => Ok(*job),
        other => Err(unexpected(&other)),
    }
}

/// The scheduler's clock, which all moments of its answers belong to.
async fn scheduler_now(fleet: &Fleet) -> Result<Moment, Failure> {
    match fleet.ask(FromClient::Status).await? {
        ToClient::Status(StatusView { now, .. }) => Ok(now),
        other => Err(unexpected(&other)),
    }
}
