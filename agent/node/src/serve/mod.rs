//! `kind = "serve"`: embeddings over HTTP, as OpenAI's clients expect them.
//!
//! ```text
//! admission    how many bytes of bodies are in memory
//! api          the request and the answer: four input forms, base64, dimensions, limits
//! app          routes, and what every path has in common: ids, keys, refusals, measures
//! connection   one client's connection
//! embeddings   one embedding request, from its bytes to its answer
//! engine       the bounded queue and the one compute thread
//! error        the nested error object
//! keys         bearer keys
//! metrics      /metrics
//! server       socket, readiness, drain
//! ```
//!
//! A text has the same vector alone and among others: batching only moves it in time.

mod admission;
mod api;
mod app;
mod connection;
mod embeddings;
mod engine;
mod error;
mod keys;
mod metrics;
mod server;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use motley_ops::PassShape;
use motley_scheduler_core::document::Serve;
use motley_scheduler_core::failure::FailureReason;
use motley_scheduler_core::unit::Span;
use motley_scheduler_core::wire::agent::Progress;
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};

use crate::failure::workload_reason;
use crate::runner::files::write_json;
use crate::runner::{Context, StopFlag};
use crate::workload::evaluate::input_path;
use crate::workload::job::Job;
use crate::workload::model::TextModel;
use crate::workload::plan::Planned;
use crate::workload::{DiskError, WorkloadError};
use api::RequestLimits;
use app::{App, Loss, ServedModel};
use engine::{Compute, Engine, EngineLimits};
use keys::Keys;
use metrics::Metrics;
use server::{Drained, Patience};

/// `drain.json` in a server's output: how it ended. Absent when it was killed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainReport {
    /// Connections on which a request was answered only in part, or not at all.
    pub cut: usize,
}

impl DrainReport {
    pub const FILE: &str = "drain.json";
}

/// Why a server could not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("{listen} is in use\nhint: choose another port with api.listen, or port 0 for a free one")]
    PortInUse { listen: String },
    #[error("cannot listen on {listen}: {source}\nhint: api.listen is ADDRESS:PORT of this machine")]
    Bind { listen: String, source: std::io::Error },
    #[error("{file} is not usable: {message}\nhint: one bearer key a line, or sha256:HASH of one")]
    Keys { file: String, message: String },
    #[error("the listening socket failed: {0}")]
    Socket(std::io::Error),
    #[error("the compute thread ended or hangs")]
    ComputeThread,
}

/// Threads that hold connections: they parse and wait, the device computes.
const CONNECTION_THREADS: usize = 2;

/// Threads that tokenize and write JSON; beyond this a request waits for one.
const BLOCKING_THREADS_MAX: usize = 4;

/// How often the stop flag is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// After drain and linger: for the stop to be heard, the report and the result to be written, on a busy machine.
const END_MARGIN: Duration = Duration::from_secs(5);

/// How long a server may take to end after it was asked to.
pub(crate) fn stop_grace(serve: &Serve) -> Span {
    let rest = Patience::LINGER + END_MARGIN;
    Span { milliseconds: serve.batch.drain.milliseconds.saturating_add(rest.as_millis() as u64) }
}

/// Runs a serve job until it is asked to stop.
///
/// # Errors
/// Port, keys, model or adapter that cannot be used; the compute thread ended by itself.
pub(crate) fn run(context: &Context, serve: &Serve) -> Result<(), WorkloadError> {
    let listener = server::bind(&serve.api.listen)?;
    let address = listener.local_addr().map_err(ServeError::Socket)?;
    let keys = match &serve.api.keys_file {
        Some(name) => {
            Keys::read(&input_path(&context.document.files(), "api.keys_file", &context.folders.input), name)?
        }
        None => Keys::default(),
    };
    let limits = RequestLimits {
        inputs_max: serve.api.inputs_max as usize,
        tokens_max: serve.api.request_tokens_max as usize,
        truncate: serve.api.truncate,
    };
    let name = serve.api.served_name.clone().unwrap_or_else(|| context.document.name.clone());
    let patience = Patience::new(Duration::from_millis(serve.batch.drain.milliseconds));
    let app = Arc::new(App::new(name, limits, serve.api.body_max.0, keys, patience));
    let runtime = runtime()?;
    let failed = Arc::new(AtomicBool::new(false));
    let stop = stopped(context.stop.clone(), Arc::clone(&failed));
    let server = runtime.spawn(server::serve(listener, Arc::clone(&app), stop));
    // The socket answers "loading" meanwhile.
    let job = Job::new(context);
    let loaded = job.and_then(|job| load(&job, serve, &app.metrics));
    let loaded = loaded.map(|model| announce(context, &app, model, address));
    failed.store(loaded.is_err(), Ordering::SeqCst);
    let ended = runtime.block_on(server);
    runtime.shutdown_background();
    loaded?;
    if let Some(lost) = app.model.get().and_then(ServedModel::take_loss) {
        return Err(lost);
    }
    report(context, serve, ended.map_err(|_| ServeError::ComputeThread)??)
}

fn report(context: &Context, serve: &Serve, drained: Drained) -> Result<(), WorkloadError> {
    let Drained { cut } = drained;
    if cut > 0 {
        let drain = serve.batch.drain;
        context.reporter.log(&format!(
            "{cut} connections were cut with a request in flight: the drain of {drain} was over\n\
             hint: raise batch.drain"
        ));
    }
    let path = context.folders.output.join(DrainReport::FILE);
    write_json(&path, &DrainReport { cut }).map_err(|source| DiskError { path, source })?;
    Ok(())
}

/// From here on requests are answered; by a server that is to end already, none are.
fn announce(context: &Context, app: &App, model: ServedModel, address: SocketAddr) {
    if context.stop.is_set() {
        return;
    }
    let hidden = model.hidden;
    let _ = app.model.set(model);
    let endpoint = format!("http://{address}/v1");
    context.reporter.log(&format!("serving `{}` ({hidden} dimensions) at {endpoint}", app.name));
    let activity = "serving".to_owned();
    context.reporter.progress(Progress { activity, unit: "text".to_owned(), ..Progress::default() });
    context.reporter.endpoint(endpoint);
}

fn load(job: &Job<'_>, serve: &Serve, metrics: &Arc<Metrics>) -> Result<ServedModel, WorkloadError> {
    let reference = serve.adapter.as_ref();
    let adapter = reference.map(|reference| job.adapter(reference)).transpose()?;
    let open = job.open_model(&serve.model, adapter.as_ref())?;
    let quantization = match (reference, &adapter) {
        (Some(reference), Some(files)) => {
            files.quantization(reference.base, &open.folder.weights_sha256.to_string())?
        }
        _ => serve.quantization,
    };
    // Any text may come that the model takes, and as many as make a pass.
    let longest = open.tokenizer.max_length();
    let pass = PassShape::bound_of_embedding(job.planned_on().kind, usize::MAX, longest, usize::MAX);
    let planned = job.check_embedding(&open, adapter.as_ref(), quantization, pass)?;
    let explain = |error| planned.explain(error, &*job.backend);
    let model = match (reference, &adapter) {
        (Some(reference), Some(files)) => open.load_with_adapter(&job.backend, files, reference.base),
        _ => open.load(&job.backend, serve.quantization, false),
    };
    let mut model = model.map_err(explain)?;
    let prompt = open.tokenizer.settings().prompt(serve.api.prompt.as_deref())?.to_owned();
    // The first pass allocates and touches everything; no client should wait for that.
    model.embed(&["warm up"], &prompt, &mut |_| Ok(())).map_err(explain)?;
    record_passes(job, &mut model);
    let limits = EngineLimits {
        token_budget: serve.batch.token_budget as usize,
        queue_tokens_max: serve.batch.queue_tokens_max as usize,
    };
    let mut revision = open.folder.weights_sha256.to_string();
    if let Some(files) = &adapter {
        revision = format!("{revision}+{}", files.sha256);
    }
    let loss = Loss::default();
    Ok(ServedModel {
        tokenizer: Arc::clone(&open.tokenizer),
        hidden: model.hidden(),
        engine: Engine::start(compute(model, planned, Loss::clone(&loss)), limits, Arc::clone(metrics)),
        loss,
        prompt,
        revision,
        parent: adapter.map(|_| open.source.clone()),
    })
}

/// Small passes, asked for by one call each where the device can do it. A server works without.
fn record_passes(job: &Job<'_>, model: &mut TextModel) {
    match model.encoder.record_passes() {
        Ok(0) => {}
        Ok(sizes) => job.context().reporter.log(&format!("{sizes} sizes of small passes are recorded")),
        Err(error) => job
            .context()
            .reporter
            .log(&format!("small passes cannot be recorded, and take longer by their launches: {error}")),
    }
}

/// A request is answered with what went wrong in it; a device that failed will do so again, and ends the server.
fn compute(model: TextModel, planned: Planned, loss: Loss) -> Compute {
    Box::new(move |texts| {
        model.encoder.embed_unchecked(texts).map_err(|error| {
            let error = planned.explain(error.into(), &*model.backend);
            let message = error.to_string();
            if workload_reason(&error) == FailureReason::DeviceFault {
                loss.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
            message
        })
    })
}

/// Loads the model of a serve job on a device of the caller's and has it answer one text; with why the server would end
/// then, if it would.
#[cfg(test)]
pub(crate) fn answer_on_device(
    context: &Context,
    serve: &Serve,
    backend: Arc<dyn motley_backends::Backend>,
    text: &str,
) -> Result<(engine::Answer, Option<WorkloadError>), WorkloadError> {
    let model = load(&Job::on(context, backend, None), serve, &Arc::new(Metrics::new("tested")))?;
    let texts = model.tokenizer.encode_all(&[text], &model.prompt)?.into_iter().map(|encoded| encoded.text);
    let answer = model.engine.submit(texts.collect()).expect("nothing waits before it");
    let answer = answer.blocking_recv().expect("the engine answers all that it took");
    let is_alive = model.is_alive();
    let loss = model.take_loss();
    assert_eq!(is_alive, loss.is_none());
    Ok((answer, loss))
}

/// Over when the job is to stop, or could not start.
async fn stopped(stop: StopFlag, failed: Arc<AtomicBool>) {
    while !stop.is_set() && !failed.load(Ordering::SeqCst) {
        tokio::time::sleep(LOOK).await;
    }
}

fn runtime() -> Result<Runtime, ServeError> {
    Builder::new_multi_thread()
        .worker_threads(CONNECTION_THREADS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_name("http")
        .enable_all()
        .build()
        .map_err(ServeError::Socket)
}
