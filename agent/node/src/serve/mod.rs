//! `kind = "serve"`: embeddings over HTTP, as OpenAI's clients expect them.
//!
//! ```text
//! api       the request and the answer: four input forms, base64, dimensions, limits
//! app       routes, and what every path has in common: ids, keys, refusals, measures
//! engine    the bounded queue and the one compute thread
//! error     the nested error object
//! keys      bearer keys
//! metrics   /metrics
//! server    socket, readiness, drain
//! ```
//!
//! A text has the same vector alone and among others: batching only moves it in time.

mod api;
mod app;
mod engine;
mod error;
mod keys;
mod metrics;
mod server;
#[cfg(test)]
mod tests;

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
