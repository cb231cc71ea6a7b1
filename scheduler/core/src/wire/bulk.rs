//! Blobs by content: the messages in front of raw bytes on the bulk connection.

use serde::{Deserialize, Serialize};

use crate::id::ContentHash;
use crate::unit::Bytes;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BulkRequest {
    /// Which of these are not stored? At most [`HASHES_MAX`].
    Missing { hashes: Vec<ContentHash> },
    /// `size` raw bytes follow on the same stream.
    Put { hash: ContentHash, size: Bytes },
    /// The reply is followed by the raw bytes from `offset` on.
    Get { hash: ContentHash, offset: Bytes },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BulkReply {
    Missing { hashes: Vec<ContentHash> },
    Stored,
    Found { size: Bytes },
    Refused { reason: String },
}

/// Hashes of one question: 32 bytes each, far below the frame limit.
pub const HASHES_MAX: usize = 4096;
