//! Becoming a member: a token and a certificate request in, a certificate out.

use serde::{Deserialize, Serialize};

use crate::authorize::Role;
use crate::id::NodeId;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    pub version: u16,
    /// The secret part of the token; sent only after the CA's fingerprint was checked.
    pub secret: String,
    /// PKCS #10, DER.
    pub certificate_request: Vec<u8>,
    /// Host name, for people.
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinReply {
    Accepted { principal: Principal, certificate: Vec<u8>, authority: Vec<u8>, valid_seconds: u64 },
    Refused { reason: String },
}

/// Whom a certificate speaks for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Principal {
    Node { node: NodeId },
    User { name: String, role: Role },
}
