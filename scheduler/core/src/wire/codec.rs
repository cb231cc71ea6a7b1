//! The bytes of messages. The only file that names bincode.
//!
//! Every decode has a byte limit and must consume its whole input. The limit also bounds what a lying length inside
//! a message can make the decoder reserve. No message type is recursive, so depth needs no bound.

use bincode::config;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{ALPN_AGENT, ALPN_BULK, ALPN_CLIENT, ALPN_JOIN};

/// Largest message, by connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// 8 KiB: a stranger may send this much, once.
    Join,
    /// 4 MiB: an assignment carries the document and the list of its files.
    Agent,
    /// 16 MiB: a list of thousands of jobs with their documents.
    Client,
    /// 256 KiB: 4096 hashes and little else; blobs follow as raw bytes.
    Bulk,
}

const JOIN: usize = 8 << 10;
const AGENT: usize = 4 << 20;
const CLIENT: usize = 16 << 20;
const BULK: usize = 256 << 10;

/// A message that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("message of {size} bytes is over the limit of {limit} bytes")]
    TooLarge { size: usize, limit: usize },
    #[error("malformed message: {detail}")]
    Malformed { detail: String },
    #[error("{count} bytes behind the end of the message")]
    Trailing { count: usize },
}

impl Limit {
    pub const ALL: [Limit; 4] = [Limit::Join, Limit::Agent, Limit::Client, Limit::Bulk];

    pub const fn bytes(self) -> usize {
        match self {
            Limit::Join => JOIN,
            Limit::Agent => AGENT,
            Limit::Client => CLIENT,
            Limit::Bulk => BULK,
        }
    }

    pub fn of_alpn(alpn: &[u8]) -> Option<Limit> {
        match alpn {
            ALPN_JOIN => Some(Limit::Join),
            ALPN_AGENT => Some(Limit::Agent),
            ALPN_CLIENT => Some(Limit::Client),
            ALPN_BULK => Some(Limit::Bulk),
            _ => None,
        }
    }
}

/// The bytes of `message`, without a length in front.
///
/// # Errors
/// [`CodecError::TooLarge`] when the other end would refuse it.
pub fn encode<T: Serialize>(message: &T, limit: Limit) -> Result<Vec<u8>, CodecError> {
    let bytes = bincode::serde::encode_to_vec(message, config::standard())
        .map_err(|error| CodecError::Malformed { detail: error.to_string() })?;
    check_size(bytes.len(), limit)?;
    Ok(bytes)
}

/// The message that `bytes` are, to the last one.
///
/// # Errors
/// Every [`CodecError`]; never a panic, and never an allocation beyond `limit` (or serde's own 1 MiB a list).
pub fn decode<T: DeserializeOwned>(bytes: &[u8], limit: Limit) -> Result<T, CodecError> {
    check_size(bytes.len(), limit)?;
    let decoded = match limit {
        Limit::Join => decode_within::<T, JOIN>(bytes),
        Limit::Agent => decode_within::<T, AGENT>(bytes),
        Limit::Client => decode_within::<T, CLIENT>(bytes),
        Limit::Bulk => decode_within::<T, BULK>(bytes),
    };
    let (message, used) = decoded.map_err(|error| CodecError::Malformed { detail: error.to_string() })?;
    match bytes.len() - used {
        0 => Ok(message),
        count => Err(CodecError::Trailing { count }),
    }
}

fn decode_within<T: DeserializeOwned, const LIMIT: usize>(
    bytes: &[u8],
) -> Result<(T, usize), bincode::error::DecodeError> {
    bincode::serde::decode_from_slice(bytes, config::standard().with_limit::<LIMIT>())
}

fn check_size(size: usize, limit: Limit) -> Result<(), CodecError> {
    let limit = limit.bytes();
    if size > limit { Err(CodecError::TooLarge { size, limit }) } else { Ok(()) }
}

/// A change of the journal: rows are written and read by this program alone, and bounded by what it accepted.
pub mod journal {
    use super::{CodecError, Limit, decode, encode};
    use crate::cluster::Change;

    /// The bytes of one journal row.
    ///
    /// # Errors
    /// A change over the limit of client messages; submissions come through one, so none should be.
    pub fn encode_change(change: &Change) -> Result<Vec<u8>, CodecError> {
        encode(change, Limit::Client)
    }

    /// One journal row.
    ///
    /// # Errors
    /// A damaged row.
    pub fn decode_change(bytes: &[u8]) -> Result<Change, CodecError> {
        decode(bytes, Limit::Client)
    }
}
