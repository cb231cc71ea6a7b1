//! `ctl run`: the embedded default. Scheduler and agent in this process on loopback, with a temporary store; the same
//! code path as on a fleet, and nothing stays behind.
//!
//! ```text
//! <temporary>/scheduler   journal, blobs, logs
//! <temporary>/identity    the admin identity of this run
//! <temporary>/agent       the node: attempts
//! ```
//!
//! A second process, the sweeper, holds the other end of a pipe: when this process is gone, by whatever end, it ends
//! the runners and removes the temporary folder.

mod embedded;
mod results;
mod summary;
pub mod sweeper;

use std::path::{Path, PathBuf};

use motley_agent_node::serve::DrainReport;
use motley_scheduler_core::document::{BackendKind, ModelPrecision, Workload};
use motley_scheduler_core::id::JobId;
use motley_scheduler_core::wire::client::{FromClient, JobState, JobView};

use crate::arguments::{RunArguments, Setting};
use crate::failure::Failure;
use crate::fleet::submission::{self, Prepared};
use crate::fleet::{Fleet, follow, pull};
use crate::output::{Output, view};
use crate::signals::Signals;
use embedded::Embedded;

/// Runs a document from start to end.
pub async fn run(arguments: RunArguments, output: &Output) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let mut settings = arguments.settings;
    let mut set = |key: &str, value: String| settings.push(Setting { key: key.to_owned(), value });
    if let Some(backend) = arguments.backend {
        set("resources.backend", format!("\"{}\"", backend.kind().map_or("auto", BackendKind::name)));
    }
    if let Some(index) = arguments.device {
        set("resources.device", index.to_string());
    }
    if let Some(precision) = arguments.precision {
        set("model.precision", format!("\"{}\"", ModelPrecision::from(precision).name()));
    }
    let prepared = submission::prepare(arguments.document, settings).await?;
    let serving = matches!(prepared.document.workload, Workload::Serve(_));
    // Before anything is computed: results that can go nowhere would be lost.
    let reserved = results::reserve(arguments.output, &prepared.document.name, output)?;
    let embedded = Embedded::start(&prepared, reserved.made()).await?;
    let folder = reserved.folder();
    let mut run = Run { output, serving, folder, signals: &mut signals, store: Store::Remove };
    let result = run.until_the_end(&embedded, prepared).await;
    match run.store {
        Store::Remove => embedded.end().await,
        Store::Keep => embedded.end_keeping().await,
        Store::Leave => embedded.leave(),
    }
    result
}

/// What becomes of the temporary store at the end.
enum Store {
    Remove,
    /// It holds the only copy of the results.
    Keep,
    /// The user does not want to wait for it.
    Leave,
}

struct Run<'a> {
    output: &'a Output,
    serving: bool,
    folder: &'a Path,
    signals: &'a mut Signals,
    store: Store,
}

impl Run<'_> {
    async fn until_the_end(&mut self, embedded: &Embedded, mut prepared: Prepared) -> Result<(), Failure> {
        let mut fleet = Fleet::at(embedded.identity()).await?;
        embedded.fit_memory(&fleet, &mut prepared).await?;
        let job = submission::send(&fleet, prepared, self.output).await?;
        let (view, interrupted) = self.follow(&mut fleet, job).await?;
        if self.serving && interrupted && view.state != JobState::Failed {
            // The temporary folder goes with this run, and what is put into it.
            let folder = embedded.identity().with_file_name("served");
            return self.judge_drain(&fleet, &view, &folder).await;
        }
        let pulled = match self.pull(&fleet, &view).await {
            Ok(pulled) => pulled,
            Err(failure) => {
                self.store = Store::Keep;
                return Err(embedded.kept(failure, job, self.folder));
            }
        };
        self.report(&view, pulled)?;
        follow::judge(&view)
    }

    /// Follows the job; the first signal cancels it, the second gives up waiting for it.
    async fn follow(&mut self, fleet: &mut Fleet, job: JobId) -> Result<(JobView, bool), Failure> {
        let controller = Fleet::at(fleet.identity().to_path_buf()).await?;
        let mut announced = None;
        let output = *self.output;
        let mut seen = |view: &JobView| announce(view, &mut announced, &output);
        let mut following = std::pin::pin!(follow::with_views(fleet, job, self.output, &mut seen));
        tokio::select! {
            view = &mut following => return Ok((view?, false)),
            () = self.signals.next() => {}
        }
        let what = if self.serving { "draining" } else { "cancelling" };
        self.output.talk(&format!("{what}: the job ends properly; once more to end it at once"));
        controller.ask(FromClient::Cancel { job }).await?;
        tokio::select! {
            view = &mut following => Ok((view?, true)),
            () = self.signals.next() => {
                self.store = Store::Leave;
                Err(Failure::failed("ended at once: nothing was kept"))
            }
        }
    }

    /// A server that was asked to end has done well if it ended by itself and cut nobody off.
    async fn judge_drain(&self, fleet: &Fleet, view: &JobView, folder: &Path) -> Result<(), Failure> {
        let artifacts = results::places(&pull::artifacts(fleet, view.job).await?);
        pull::into_folder(fleet, &artifacts, folder).await?;
        match results::drained(folder) {
            Some(DrainReport { cut: 0 }) => {
                self.output.talk("served until the end; every request was answered");
                Ok(())
            }
            Some(DrainReport { cut }) => {
                let message =
                    format!("{cut} connections were cut with a request in flight: the drain was over");
                Err(Failure::failed(message).hint("raise batch.drain"))
            }
            None => Err(Failure::failed(
                "the server did not end by itself: requests in flight, if there were any, got no answer",
            )),
        }
    }

    /// Copies results and checkpoints; a folder that would be empty is not made.
    async fn pull(&self, fleet: &Fleet, view: &JobView) -> Result<Option<PathBuf>, Failure> {
        let artifacts = results::places(&pull::artifacts(fleet, view.job).await?);
        if artifacts.is_empty() {
            return Ok(None);
        }
        pull::into_folder(fleet, &artifacts, self.folder).await?;
        Ok(Some(self.folder.to_path_buf()))
    }

    fn report(&self, view: &JobView, folder: Option<PathBuf>) -> Result<(), Failure> {
        let report = folder.as_deref().and_then(summary::read);
        if self.output.json {
            let mut value = view::job_json(view);
            value["folder"] = serde_json::json!(folder);
            value["report"] = report.unwrap_or_default();
            self.output.json_line(&value);
            return Ok(());
        }
        if let Some(folder) = folder {
            self.output.text(&summary::text(report.as_ref(), &folder));
        }
        Ok(())
    }
}

/// Prints the endpoint of a serving job when it is first known, as data: a script may wait for the line.
fn announce(view: &JobView, announced: &mut Option<String>, output: &Output) {
    if view.endpoint.is_some() && view.endpoint != *announced {
        announced.clone_from(&view.endpoint);
        let endpoint = view.endpoint.clone().unwrap_or_default();
        output.data(
            || format!("{} is served at {endpoint}", view.name),
            || serde_json::json!({ "name": view.name, "endpoint": endpoint }),
        );
    }
}
