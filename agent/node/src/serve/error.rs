//! Errors of the HTTP interface: one nested object on every path, as clients of OpenAI parse it.
//!
//! ```json
//! {"error": {"message": "...", "type": "invalid_request_error", "param": "input", "code": null}}
//! ```
//!
//! 429 and 503 carry `retry-after-ms`: together with the status that is the clients' back-pressure protocol.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

pub(crate) const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// An answer that is no embedding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    pub(crate) kind: &'static str,
    pub(crate) param: Option<&'static str>,
    pub(crate) code: Option<&'static str>,
    pub(crate) retry_after_ms: Option<u64>,
}

const INVALID_REQUEST: &str = "invalid_request_error";
const SERVER_ERROR: &str = "server_error";

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        ApiError { status, message: message.into(), kind, param: None, code: None, retry_after_ms: None }
    }

    /// 400: the request, named by its parameter, cannot be answered.
    pub(crate) fn invalid(param: &'static str, message: impl Into<String>) -> Self {
        ApiError { param: Some(param), ..Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, message) }
    }

    /// 400: the body is no JSON object.
    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, message)
    }

    /// 401.
    pub(crate) fn unauthorized(message: &str) -> Self {
        ApiError {
            code: Some("invalid_api_key"),
            ..Self::new(StatusCode::UNAUTHORIZED, INVALID_REQUEST, message)
        }
    }

    /// 404 for a model that is not served here.
    pub(crate) fn unknown_model(asked: &str, served: &str) -> Self {
        let message = format!("The model `{asked}` does not exist; this server serves `{served}`.");
        ApiError {
            param: Some("model"),
            code: Some("model_not_found"),
            ..Self::new(StatusCode::NOT_FOUND, INVALID_REQUEST, message)
        }
    }

    /// 404 for a path.
    pub(crate) fn unknown_path(method: &str, path: &str) -> Self {
        let message = format!("Unknown request URL: {method} {path}.");
        ApiError { code: Some("unknown_url"), ..Self::new(StatusCode::NOT_FOUND, INVALID_REQUEST, message) }
    }

    /// 405.
    pub(crate) fn wrong_method(method: &str, path: &str) -> Self {
        let message = format!("Not allowed to {method} on {path}.");
        ApiError {
            code: Some("method_not_supported"),
            ..Self::new(StatusCode::METHOD_NOT_ALLOWED, INVALID_REQUEST, message)
        }
    }

    /// 408: the body does not arrive.
    pub(crate) fn slow_body() -> Self {
        let message = "The request body did not arrive in time. Send it again.";
        ApiError {
            code: Some("request_timeout"),
            ..Self::new(StatusCode::REQUEST_TIMEOUT, INVALID_REQUEST, message)
        }
    }

    /// 413.
    pub(crate) fn too_large(limit: u64) -> Self {
        let message = format!("The request body is larger than {limit} bytes. Send fewer inputs a request.");
        ApiError {
            code: Some("request_too_large"),
            ..Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID_REQUEST, message)
        }
    }

    /// 429: more waits than the queue may hold.
    pub(crate) fn overloaded(retry_after_ms: u64) -> Self {
        ApiError {
            code: Some("overloaded"),
            retry_after_ms: Some(retry_after_ms),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                "The queue of this server is full. Retry after the time in the retry-after-ms header.",
            )
        }
    }

    /// 503: loading, or ending.
    pub(crate) fn unavailable(code: &'static str, retry_after_ms: u64) -> Self {
        let message = match code {
            "loading" => "The model is being loaded.",
            _ => "This server is shutting down.",
        };
        ApiError {
            code: Some(code),
            retry_after_ms: Some(retry_after_ms),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER_ERROR, message)
        }
    }

    /// 500.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        ApiError {
            code: Some("internal_error"),
            ..Self::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER_ERROR, message)
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = json!({
            "error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        });
        let mut response = (self.status, axum::Json(body)).into_response();
        let headers = response.headers_mut();
        if let Some(milliseconds) = self.retry_after_ms {
            headers.insert(RETRY_AFTER_MS, HeaderValue::from(milliseconds));
            headers.insert(header::RETRY_AFTER, HeaderValue::from(milliseconds.div_ceil(1000)));
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("true"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
