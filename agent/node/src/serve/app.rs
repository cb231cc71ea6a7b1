//! Routes and handlers: what each path answers, and what every path has in common.
//!
//! Every request passes one layer that gives it an id, counts it while it is in flight, refuses it while the server
//! drains or loads, checks its key, and measures it. `/health`, `/ready` and `/metrics` are open to all.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::admission::Admission;
use super::api::RequestLimits;
use super::embeddings::embeddings;
use super::engine::Engine;
use super::error::ApiError;
use super::keys::Keys;
use super::metrics::{CONTENT_TYPE, Metrics};
use super::server::Patience;
use crate::text::TextTokenizer;
use crate::workload::WorkloadError;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest request id taken over from a client.
const REQUEST_ID_MAX: usize = 128;

/// Clients that meet a server about to end come back after this, and find another one or its successor.
const DRAINING_RETRY_MS: u64 = 1000;

/// The server's state, shared by all connections.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) name: String,
    pub(crate) limits: RequestLimits,
    pub(crate) body_max: u64,
    pub(crate) keys: Keys,
    pub(crate) metrics: Arc<Metrics>,
    /// Set once the model is loaded and warm.
    pub(crate) model: OnceLock<ServedModel>,
    pub(crate) patience: Patience,
    pub(crate) admission: Arc<Admission>,
    /// Requests whose answer is not known yet.
    pub(crate) in_flight: AtomicUsize,
    /// Open connections that have begun a request.
    pub(crate) unfinished: AtomicUsize,
    draining: watch::Sender<bool>,
    request_ids: RequestIds,
    created: u64,
}

/// What answers.
#[derive(Debug)]
pub(crate) struct ServedModel {
    pub(crate) tokenizer: Arc<TextTokenizer>,
    pub(crate) engine: Engine,
    /// Values of a vector.
    pub(crate) hidden: usize,
    /// Put before every input; may be empty.
    pub(crate) prompt: String,
    /// SHA-256 of weights and adapter together, for `x-model-revision`.
    pub(crate) revision: String,
    /// The base model's source, where an adapter is served.
    pub(crate) parent: Option<String>,
    pub(crate) loss: Loss,
}

/// Why the device can compute no more, once it cannot.
pub(crate) type Loss = Arc<Mutex<Option<WorkloadError>>>;

impl ServedModel {
    /// False once the compute thread has ended by itself or hangs, or the device is lost.
    pub(crate) fn is_alive(&self) -> bool {
        self.engine.is_alive() && self.loss.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    pub(crate) fn take_loss(&self) -> Option<WorkloadError> {
        self.loss.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Ids that no other server gives: a per-process secret and a counter, hashed.
#[derive(Debug)]
struct RequestIds {
    seed: [u8; 32],
    next: AtomicU64,
}

impl App {
    pub(crate) fn new(
        name: String,
        limits: RequestLimits,
        body_max: u64,
        keys: Keys,
        patience: Patience,
    ) -> App {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seed = Sha256::digest(format!("{} {} {name}", since_epoch.as_nanos(), std::process::id())).into();
        App {
            metrics: Arc::new(Metrics::new(&name)),
            name,
            limits,
            body_max,
            keys,
            model: OnceLock::new(),
            patience,
            admission: Arc::new(Admission::new(body_max)),
            in_flight: AtomicUsize::new(0),
            unfinished: AtomicUsize::new(0),
            draining: watch::Sender::new(false),
            request_ids: RequestIds { seed, next: AtomicU64::new(0) },
            created: since_epoch.as_secs(),
        }
    }

    /// From here on new requests are refused.
    pub(crate) fn drain(&self) {
        self.draining.send_replace(true);
    }

    pub(crate) fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Over when the drain begins.
    pub(crate) async fn drain_begins(&self) {
        // The sender is this App's own: it does not end before the wait.
        let _ = self.draining.subscribe().wait_for(|draining| *draining).await;
    }

    /// Loaded, warm, not ending, and with room in the queue.
    pub(crate) fn is_ready(&self) -> bool {
        !self.is_draining()
            && self.model.get().is_some_and(|model| model.is_alive() && model.engine.has_room())
    }

    fn is_healthy(&self) -> bool {
        self.model.get().is_none_or(ServedModel::is_alive)
    }
}

impl RequestIds {
    fn next(&self) -> HeaderValue {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let hash = Sha256::new().chain_update(self.seed).chain_update(number.to_le_bytes()).finalize();
        let digits: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        HeaderValue::try_from(format!("req_{digits}")).expect("hexadecimal digits are a header value")
    }
}

/// All routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    let body_max = usize::try_from(app.body_max).unwrap_or(usize::MAX);
    Router::new()
        .route("/v1/embeddings", post(embeddings))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .fallback(async |method: Method, uri: Uri| ApiError::unknown_path(method.as_str(), uri.path()))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            ApiError::wrong_method(method.as_str(), uri.path())
        })
        .layer(DefaultBodyLimit::max(body_max))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), around))
        .with_state(app)
}

/// Counts a request for as long as it exists, however it ends.
struct InFlight<'a>(&'a AtomicUsize);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What every request has in common.
async fn around(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    app.in_flight.fetch_add(1, Ordering::SeqCst);
    let _in_flight = InFlight(&app.in_flight);
    let id = request.headers().get(REQUEST_ID).filter(|id| id.len() <= REQUEST_ID_MAX && !id.is_empty());
    let id = id.cloned().unwrap_or_else(|| app.request_ids.next());
    let is_embedding = request.uri().path() == "/v1/embeddings";
    let mut response = match admit(&app, &request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    response.headers_mut().insert(REQUEST_ID, id);
    if is_embedding {
        app.metrics.answered(response.status().as_u16(), began.elapsed());
    }
    response
}

fn admit(app: &App, request: &Request) -> Result<(), ApiError> {
    if !request.uri().path().starts_with("/v1/") {
        return Ok(());
    }
    let authorization = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if !app.keys.admit(authorization) {
        let message = match authorization {
            None => "You didn't provide an API key. Send it in an Authorization header: Bearer KEY.",
            Some(_) => "Incorrect API key provided.",
        };
        return Err(ApiError::unauthorized(message));
    }
    if app.is_draining() {
        return Err(ApiError::unavailable("draining", DRAINING_RETRY_MS));
    }
    Ok(())
}

fn model_entry(app: &App) -> Value {
    let parent = app.model.get().and_then(|model| model.parent.clone());
    json!({"id": app.name, "object": "model", "created": app.created, "owned_by": "motley", "parent": parent})
}

async fn models(State(app): State<Arc<App>>) -> Response {
    axum::Json(json!({"object": "list", "data": [model_entry(&app)]})).into_response()
}

async fn model(
    State(app): State<Arc<App>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    // Only what percent-encodes no UTF-8 is rejected.
    let Path(name) = name.map_err(|rejection| ApiError::malformed(format!("{}.", rejection.body_text())))?;
    if name != app.name {
        return Err(ApiError::unknown_model(&name, &app.name));
    }
    Ok(axum::Json(model_entry(&app)).into_response())
}

/// Alive: the compute thread runs and does not hang.
async fn health(State(app): State<Arc<App>>) -> Response {
    let healthy = app.is_healthy();
    let status = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, axum::Json(json!({"status": if healthy { "ok" } else { "failed" }}))).into_response()
}

async fn ready(State(app): State<Arc<App>>) -> Response {
    let state = if app.is_draining() {
        "draining"
    } else if app.model.get().is_none() {
        "loading"
    } else if app.is_ready() {
        "ready"
    } else {
        "overloaded"
    };
    let status = if state == "ready" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, axum::Json(json!({"status": state}))).into_response()
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    app.metrics.ready.set(i64::from(app.is_ready()));
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], app.metrics.page()).into_response()
}
