//! `POST /v1/embeddings`, from the bytes of its body to the answer.
//!
//! ```text
//! admit by size ─429─▶ read ─408─▶ parse, check, tokenize ─400─▶ queue ─429─▶ vectors ─▶ JSON
//! ```
//!
//! A client that goes away takes its request with it: the connection drops the handler, and what has not begun on
//! another thread does not begin.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::time::sleep;

use super::admission::Admitted;
use super::api::{self, EmbeddingRequest, VectorForm};
use super::app::{App, ServedModel};
use super::error::ApiError;

const TRUNCATED_INPUTS: HeaderName = HeaderName::from_static("x-truncated-inputs");
const MODEL_REVISION: HeaderName = HeaderName::from_static("x-model-revision");

/// Clients that ask while the model loads come back after this.
const LOADING_RETRY_MS: u64 = 1000;

/// Clients whose body finds no room come back after this at least: tokenizing one body of the largest size takes
/// seconds.
const BODY_RETRY_MS: u64 = 500;

pub(super) async fn embeddings(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let model = app.model.get().ok_or_else(|| ApiError::unavailable("loading", LOADING_RETRY_MS))?;
    let bytes = announced_bytes(&request).unwrap_or(app.body_max);
    if bytes > app.body_max {
        return Err(ApiError::too_large(app.body_max));
    }
    let retry_after_ms = || model.engine.retry_after_ms().max(BODY_RETRY_MS);
    let admitted = app.admission.enter(bytes).ok_or_else(|| ApiError::overloaded(retry_after_ms()))?;
    let body = Body { bytes: read(&app, request, bytes).await?, _admitted: admitted };
    // Parsing and tokenizing take milliseconds to seconds: not on the threads that hold the connections.
    let Prepared { request, texts, tokens, truncated } = prepare_elsewhere(&app, body).await?;
    let count = texts.len();
    let receiver = model.engine.submit(texts).map_err(ApiError::overloaded)?;
    let vectors = match receiver.await {
        Ok(Ok(vectors)) => vectors,
        Ok(Err(message)) => {
            tracing::error!(message, "batch failed");
            return Err(ApiError::internal(message));
        }
        Err(_) => return Err(ApiError::internal("the compute thread has ended")),
    };
    app.metrics.inputs.inc_by(count as u64);
    app.metrics.tokens.inc_by(tokens as u64);
    app.metrics.truncated_inputs.inc_by(truncated as u64);
    let name = app.name.clone();
    let form =
        VectorForm { hidden: model.hidden, dimensions: request.dimensions, encoding: request.encoding };
    let answer = tokio::task::spawn_blocking(move || api::answer(&vectors, form, &name, tokens));
    let answer = answer.await.map_err(|error| ApiError::internal(error.to_string()))?;
    let mut response = ([(header::CONTENT_TYPE, "application/json")], answer).into_response();
    response.headers_mut().insert(TRUNCATED_INPUTS, HeaderValue::from(truncated));
    if let Ok(revision) = HeaderValue::try_from(&model.revision) {
        response.headers_mut().insert(MODEL_REVISION, revision);
    }
    Ok(response)
}

/// A body in memory, and the room that it takes.
struct Body {
    bytes: Bytes,
    _admitted: Admitted,
}

fn announced_bytes(request: &Request) -> Option<u64> {
    request.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The whole body, unless it is too slow: a stalled upload would hold its room, and a drain, for ever.
async fn read(app: &App, request: Request, announced: u64) -> Result<Bytes, ApiError> {
    let late = async {
        tokio::select! {
            () = sleep(app.patience.for_body(announced)) => {}
            () = async {
                app.drain_begins().await;
                sleep(app.patience.body_draining).await;
            } => {}
        }
    };
    let body = tokio::select! {
        body = Bytes::from_request(request, &()) => body,
        () = late => return Err(ApiError::slow_body()),
    };
    body.map_err(|rejection: BytesRejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::too_large(app.body_max),
        _ => ApiError::malformed(format!("The request body could not be read: {rejection}.")),
    })
}

/// A request that the engine can take.
struct Prepared {
    request: EmbeddingRequest,
    texts: Vec<motley_ops::TokenizedText>,
    tokens: usize,
    truncated: usize,
}

async fn prepare_elsewhere(app: &Arc<App>, body: Body) -> Result<Prepared, ApiError> {
    // Dropped with this handler, when the client has gone.
    let caller = Arc::new(());
    let waits = Arc::downgrade(&caller);
    let app = Arc::clone(app);
    let task = tokio::task::spawn_blocking(move || {
        let model = app.model.get().ok_or_else(|| ApiError::unavailable("loading", LOADING_RETRY_MS))?;
        prepare(&app, model, &body.bytes, &|| waits.strong_count() > 0)
    });
    let prepared = task.await.map_err(|error| ApiError::internal(error.to_string()))??;
    drop(caller);
    prepared.ok_or_else(|| ApiError::internal("the client has gone"))
}

/// Nothing once nobody waits for it any more.
fn prepare(
    app: &App,
    model: &ServedModel,
    body: &[u8],
    still_asked: &dyn Fn() -> bool,
) -> Result<Option<Prepared>, ApiError> {
    if !still_asked() {
        return Ok(None);
    }
    let request = EmbeddingRequest::parse(body)?;
    if request.model != app.name {
        return Err(ApiError::unknown_model(&request.model, &app.name));
    }
    if let Some(dimensions) = request.dimensions.filter(|dimensions| *dimensions > model.hidden) {
        let message = format!(
            "'$.dimensions' is invalid: {dimensions} is more than the {} of this model.",
            model.hidden
        );
        return Err(ApiError::invalid("dimensions", message));
    }
    let encoded = api::tokenize(&request.input, &model.tokenizer, &model.prompt, app.limits, still_asked)?;
    let Some(encoded) = encoded else { return Ok(None) };
    let truncated = encoded.iter().filter(|encoded| encoded.is_truncated()).count();
    let texts: Vec<_> = encoded.into_iter().map(|encoded| encoded.text).collect();
    let tokens = texts.iter().map(|text| text.ids.len()).sum();
    Ok(Some(Prepared { request, texts, tokens, truncated }))
}
