//! `kind = "serve"`: the OpenAI-compatible endpoint.

use super::model::{AdapterReference, Model, Quantization};
use crate::unit::{Bytes, Span};

/// A serve job.
#[derive(Debug, Clone, PartialEq)]
pub struct Serve {
    pub model: Model,
    /// `quantization = "nf4"` under `[model]`: serve the quantized base. With an adapter its own base decides.
    pub quantization: Option<Quantization>,
    pub adapter: Option<AdapterReference>,
    pub api: Api,
    pub batch: Batch,
}

/// `[api]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Api {
    /// Address and port; default `127.0.0.1:8080`.
    pub listen: String,
    /// The model's name for clients; default: the job's name.
    pub served_name: Option<String>,
    /// File with one bearer key a line, relative to the document; absent: open to all who reach the port.
    pub keys_file: Option<String>,
    /// Texts a request; default 2048.
    pub inputs_max: u32,
    /// Tokens a request, summed; default 300000.
    pub request_tokens_max: u32,
    /// Default 32 MiB.
    pub body_max: Bytes,
    /// What happens to a text over `max_length`; default error.
    pub truncate: Truncate,
    /// Name of the prompt put before every input; default none.
    pub prompt: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Truncate {
    #[default]
    Error,
    Right,
}

/// `[batch]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Tokens of one forward pass; default 4096.
    pub token_budget: u32,
    /// Tokens waiting before 429; default 1048576; at least `request_tokens_max`.
    pub queue_tokens_max: u32,
    /// After SIGTERM: how long requests in flight may take; default 30s.
    pub drain: Span,
}
