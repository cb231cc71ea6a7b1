//! Commands that talk to a scheduler, and what they share: the connection and its errors as exit codes.

pub mod daemon;
pub mod follow;
pub mod jobs;
pub mod memory;
pub mod pull;
pub mod submission;
pub mod token;

use std::path::PathBuf;

use motley_agent_node::NodeError;
use motley_scheduler_core::wire::client::{FromClient, ToClient};
use motley_scheduler_link::{Bulk, Client, LinkError};

use crate::arguments::Common;
use crate::failure::{Exit, Failure};
use crate::folders;

/// A connection to the scheduler of an identity folder.
pub struct Fleet {
    client: Client,
    identity: PathBuf,
}

impl Fleet {
    /// Connects with the identity that the user named, or the default one.
    pub async fn open(common: &Common) -> Result<Fleet, Failure> {
        Fleet::at(identity_folder(common)?).await
    }

    pub async fn at(identity: PathBuf) -> Result<Fleet, Failure> {
        if !identity.join("certificate.pem").is_file() {
            return Err(no_identity(&identity));
        }
        let client = Client::open(&identity).await?;
        Ok(Fleet { client, identity })
    }

    /// The same scheduler, connected anew: after it was restarted.
    pub async fn reopen(&mut self) -> Result<(), Failure> {
        self.client = Client::open(&self.identity).await?;
        Ok(())
    }

    pub fn identity(&self) -> &std::path::Path {
        &self.identity
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The connection for contents.
    pub async fn bulk(&self) -> Result<Bulk, Failure> {
        Ok(Bulk::open(&self.identity).await?)
    }

    /// One question, one answer; a refusal is a failure.
    pub async fn ask(&self, question: FromClient) -> Result<ToClient, Failure> {
        match self.client.request(question).await? {
            ToClient::Refused(refusal) => Err(refusal.into()),
            answer => Ok(answer),
        }
    }
}

pub fn identity_folder(common: &Common) -> Result<PathBuf, Failure> {
    match &common.identity {
        Some(folder) => Ok(folder.clone()),
        None => folders::identity(),
    }
}

fn no_identity(folder: &std::path::Path) -> Failure {
    Failure::new(Exit::Denied, format!("no certificate in {}", folder.display())).hint(
        "start `ctl scheduler` on this machine, or get a token made by `ctl token create --user NAME --role ROLE` \
         and run `ctl login`; --identity DIR or MOTLEY_IDENTITY names another folder",
    )
}

/// An answer of a kind that does not fit the question.
pub fn unexpected(answer: &ToClient) -> Failure {
    let name = format!("{answer:?}");
    let name = name.split(['(', ' ', '{']).next().unwrap_or_default().to_owned();
    Failure::failed(format!("the scheduler answered {name} to another question"))
        .hint("ctl and scheduler may be of different versions; `ctl --version` prints this one")
}

impl From<LinkError> for Failure {
    fn from(error: LinkError) -> Self {
        let exit = match &error {
            LinkError::Unreachable { .. } | LinkError::Timeout { .. } | LinkError::Closed { .. } => {
                Exit::Unreachable
            }
            LinkError::Refused { .. }
            | LinkError::Handshake { .. }
            | LinkError::FingerprintMismatch { .. }
            | LinkError::Identity { .. } => Exit::Denied,
            LinkError::Address { .. } | LinkError::Token { .. } => Exit::Usage,
            LinkError::NotStored { .. } => Exit::NotFound,
            _ => Exit::Failed,
        };
        Failure::new(exit, error)
    }
}

impl From<NodeError> for Failure {
    fn from(error: NodeError) -> Self {
        let exit = match error {
            NodeError::Link(error) => return error.into(),
            NodeError::NotJoined { .. } | NodeError::Token { .. } | NodeError::NotANode { .. } => Exit::Usage,
            NodeError::Expired { .. } => Exit::Denied,
            NodeError::State { .. }
            | NodeError::Taken { .. }
            | NodeError::Facts { .. }
            | NodeError::Task { .. } => Exit::Failed,
        };
        Failure::new(exit, error)
    }
}
