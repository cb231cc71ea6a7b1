//! Since which protocol version each message exists. The matches name every variant: a new one does not compile before
//! somebody has said in which version it came.

use serde::Serialize;

use super::agent::{FromAgent, ToAgent};
use super::bulk::{BulkReply, BulkRequest};
use super::client::{FromClient, ToClient};
use super::hello::{Hello, HelloReply};
use super::join::{JoinReply, JoinRequest};

/// What is sent between processes. Nothing newer than the version that both have agreed on is.
pub trait Message: Serialize {
    /// The first protocol version that knows this message.
    fn since(&self) -> u16;
}

impl Message for FromClient {
    fn since(&self) -> u16 {
        match self {
            FromClient::Submit { .. }
            | FromClient::Jobs
            | FromClient::Job { .. }
            | FromClient::Cancel { .. }
            | FromClient::Logs { .. }
            | FromClient::Watch { .. }
            | FromClient::Nodes
            | FromClient::Artifacts { .. }
            | FromClient::CreateToken { .. }
            | FromClient::Status => 1,
            FromClient::JobsBefore { .. } => 2,
            FromClient::Devices => 3,
        }
    }
}

impl Message for ToClient {
    fn since(&self) -> u16 {
        match self {
            ToClient::Submitted { .. }
            | ToClient::Jobs(_)
            | ToClient::Job(_)
            | ToClient::Cancelled { .. }
            | ToClient::Log { .. }
            | ToClient::Done
            | ToClient::Nodes(_)
            | ToClient::Artifacts(_)
            | ToClient::Token { .. }
            | ToClient::Status(_)
            | ToClient::Refused(_) => 1,
            ToClient::Devices(_) => 3,
        }
    }
}

impl Message for FromAgent {
    fn since(&self) -> u16 {
        match self {
            FromAgent::Report { .. }
            | FromAgent::Beat { .. }
            | FromAgent::Attempt(_)
            | FromAgent::Progress { .. }
            | FromAgent::CheckpointStored { .. }
            | FromAgent::Ended { .. }
            | FromAgent::Log { .. }
            | FromAgent::RenewCertificate { .. } => 1,
            FromAgent::ReportDevices { .. } => 3,
        }
    }
}

impl Message for ToAgent {
    fn since(&self) -> u16 {
        match self {
            ToAgent::Welcome { .. }
            | ToAgent::Start(_)
            | ToAgent::Stop { .. }
            | ToAgent::LeaseRenewed { .. }
            | ToAgent::EndRecorded { .. }
            | ToAgent::Stale { .. }
            | ToAgent::LogStored { .. }
            | ToAgent::Certificate { .. }
            | ToAgent::Refused { .. } => 1,
        }
    }
}

impl Message for BulkRequest {
    fn since(&self) -> u16 {
        match self {
            BulkRequest::Missing { .. } | BulkRequest::Put { .. } | BulkRequest::Get { .. } => 1,
        }
    }
}

impl Message for BulkReply {
    fn since(&self) -> u16 {
        match self {
            BulkReply::Missing { .. }
            | BulkReply::Stored
            | BulkReply::Found { .. }
            | BulkReply::Refused { .. } => 1,
        }
    }
}

/// Before anything is agreed on, so of every version.
impl Message for Hello {
    fn since(&self) -> u16 {
        1
    }
}

impl Message for HelloReply {
    fn since(&self) -> u16 {
        match self {
            HelloReply::Agreed { .. } | HelloReply::Refused { .. } => 1,
        }
    }
}

/// Joining is one message and its answer: it carries its version itself.
impl Message for JoinRequest {
    fn since(&self) -> u16 {
        1
    }
}

impl Message for JoinReply {
    fn since(&self) -> u16 {
        match self {
            JoinReply::Accepted { .. } | JoinReply::Refused { .. } => 1,
        }
    }
}
