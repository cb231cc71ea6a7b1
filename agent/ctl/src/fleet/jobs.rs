//! `ctl jobs`, `ctl show`, `ctl cancel`, `ctl nodes`, `ctl logs`: questions about the fleet.

use motley_scheduler_core::id::JobId;
use motley_scheduler_core::unit::Moment;
use motley_scheduler_core::wire::client::{FromClient, JobView, StatusView, ToClient};
use serde_json::json;

use super::{Fleet, follow, unexpected};
use crate::arguments::{CancelArguments, Common, LogsArguments, ShowArguments};
use crate::failure::Failure;
use crate::output::{Output, view};

pub async fn list(common: &Common, output: &Output) -> Result<(), Failure> {
    let fleet = Fleet::open(common).await?;
    let now = scheduler_now(&fleet).await?;
    match fleet.ask(FromClient::Jobs).await? {
        ToClient::Jobs(jobs) => {
            output.data(
                || view::jobs_table(&jobs, now),
                || json!({ "jobs": jobs.iter().map(view::job_json).collect::<Vec<_>>() }),
            );
            Ok(())
        }
        other => Err(unexpected(&other)),
    }
}

pub async fn nodes(common: &Common, output: &Output) -> Result<(), Failure> {
    let fleet = Fleet::open(common).await?;
    let now = scheduler_now(&fleet).await?;
    match fleet.ask(FromClient::Nodes).await? {
        ToClient::Nodes(nodes) => {
            output.data(
                || view::nodes_table(&nodes, now),
                || json!({ "nodes": nodes.iter().map(view::node_json).collect::<Vec<_>>() }),
            );
            Ok(())
        }
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
