//! What can go wrong between two processes, in the words that a user reads.

use std::path::PathBuf;

use motley_scheduler_core::id::ContentHash;
use motley_scheduler_core::unit::Bytes;

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("`{address}` is not an address: {reason}\nhint: write HOST:PORT, such as 10.0.0.5:7443")]
    Address { address: String, reason: String },
    #[error(
        "no scheduler answers at {address}: {reason}\nhint: is `ctl scheduler` running there, and UDP to that port open?"
    )]
    Unreachable { address: String, reason: String },
    #[error(
        "the scheduler at {address} is not the one of this token: its authority is {found}, the token wants {expected}\n\
         hint: make a token on this scheduler with `ctl token create`"
    )]
    FingerprintMismatch { address: String, expected: ContentHash, found: ContentHash },
    /// The peer answered, and said no.
    #[error("{reason}")]
    Refused { reason: String },
    /// TLS failed: foreign authority, expired certificate, no common protocol.
    #[error("{reason}")]
    Handshake { reason: String },
    #[error("cannot listen on {address}: {source}\nhint: {hint}")]
    Listen { address: std::net::SocketAddr, source: std::io::Error, hint: &'static str },
    #[error("no {what} within {seconds} s")]
    Timeout { what: &'static str, seconds: u64 },
    /// The connection or the stream is gone.
    #[error("connection closed: {reason}")]
    Closed { reason: String },
    #[error("message of {size} is above the limit of {limit}")]
    TooLarge { size: Bytes, limit: Bytes },
    #[error("message ends after {received} of {expected} bytes")]
    Truncated { received: u64, expected: u64 },
    #[error("message cannot be read: {reason}")]
    Malformed { reason: String },
    /// Nothing was sent.
    #[error(
        "this needs protocol version {since}, the other side speaks {agreed}\nhint: update the older of the two programs"
    )]
    PeerTooOld { since: u16, agreed: u16 },
    #[error("peer answered {found} where {expected} was due")]
    Unexpected { expected: &'static str, found: String },
    #[error("contents of {what} are {found}, not {expected}")]
    HashMismatch { what: String, expected: ContentHash, found: ContentHash },
    #[error("no blob {hash} is stored")]
    NotStored { hash: ContentHash },
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{}: {reason}\nhint: {hint}", path.display())]
    Identity { path: PathBuf, reason: String, hint: &'static str },
    #[error("certificate cannot be used: {reason}")]
    Certificate { reason: String },
    #[error("`{text}` is not a join token\nhint: copy the whole line that `ctl token create` printed")]
    Token { text: String },
    #[error("no entropy: {reason}")]
    Entropy { reason: String },
}

impl LinkError {
    /// Whether dialing again may help: nothing is wrong with what was asked.
    pub fn is_transient(&self) -> bool {
        matches!(self, LinkError::Unreachable { .. } | LinkError::Timeout { .. } | LinkError::Closed { .. })
    }

    pub(crate) fn file(path: &std::path::Path, source: std::io::Error) -> Self {
        LinkError::File { path: path.to_owned(), source }
    }

    pub(crate) fn certificate(error: impl std::fmt::Display) -> Self {
        LinkError::Certificate { reason: error.to_string() }
    }
}
