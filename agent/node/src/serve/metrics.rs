//! What `/metrics` tells: requests, texts, tokens, waits, batches.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StatusLabel {
    status: u16,
}

/// The counters of one server.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<StatusLabel, Counter>,
    request_seconds: Histogram,
    queue_seconds: Histogram,
    batch_tokens: Histogram,
    pub(crate) inputs: Counter,
    pub(crate) tokens: Counter,
    pub(crate) truncated_inputs: Counter,
    pub(crate) queue_tokens: Gauge,
    pub(crate) ready: Gauge,
}

pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

impl Metrics {
    pub(crate) fn new(model: &str) -> Metrics {
        // 0.1 ms to 13 s by doubling; 16 to 65,536 tokens by doubling.
        let seconds = || Histogram::new(exponential_buckets(1e-4, 2.0, 18));
        let mut metrics = Metrics {
            registry: Registry::default(),
            requests: Family::default(),
            request_seconds: seconds(),
            queue_seconds: seconds(),
            batch_tokens: Histogram::new(exponential_buckets(16.0, 2.0, 13)),
            inputs: Counter::default(),
            tokens: Counter::default(),
            truncated_inputs: Counter::default(),
            queue_tokens: Gauge::default(),
            ready: Gauge::default(),
        };
        let info =
            Info::new(vec![("name", model.to_owned()), ("version", env!("CARGO_PKG_VERSION").to_owned())]);
        let registry = &mut metrics.registry;
        registry.register("serve_model", "The model that is served", info);
        registry.register(
            "serve_requests",
            "Answered embedding requests by status",
            metrics.requests.clone(),
        );
        registry.register("serve_inputs", "Texts embedded", metrics.inputs.clone());
        registry.register("serve_tokens", "Tokens embedded, special tokens included", metrics.tokens.clone());
        registry.register(
            "serve_truncated_inputs",
            "Texts cut to max_length",
            metrics.truncated_inputs.clone(),
        );
        registry.register(
            "serve_request_duration_seconds",
            "From the arrival of an embedding request to its answer",
            metrics.request_seconds.clone(),
        );
        registry.register(
            "serve_queue_duration_seconds",
            "From a request's entry into the queue to its first batch",
            metrics.queue_seconds.clone(),
        );
        registry.register("serve_batch_tokens", "Tokens of one forward pass", metrics.batch_tokens.clone());
        registry.register("serve_queue_tokens", "Tokens that wait", metrics.queue_tokens.clone());
        registry.register("serve_ready", "1 while requests are accepted", metrics.ready.clone());
        metrics
    }

    pub(crate) fn answered(&self, status: u16, took: Duration) {
        self.requests.get_or_create(&StatusLabel { status }).inc();
        self.request_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn waited(&self, wait: Duration) {
        self.queue_seconds.observe(wait.as_secs_f64());
    }

    pub(crate) fn batch(&self, tokens: usize) {
        self.batch_tokens.observe(tokens as f64);
    }

    /// The page in OpenMetrics text.
    pub(crate) fn page(&self) -> String {
        let mut page = String::new();
        // Writing into a String cannot fail; an empty page would be the visible outcome if it did.
        let _ = prometheus_client::encoding::text::encode(&mut page, &self.registry);
        page
    }
}
