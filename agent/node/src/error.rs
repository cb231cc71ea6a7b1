//! Why an agent could not start, or had to end.

use std::io;
use std::path::PathBuf;

use motley_scheduler_link::LinkError;

/// What keeps an agent from working.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("{}: {source}\nhint: the agent needs a folder on a disk with room that it may write: --state", path.display())]
    State { path: PathBuf, source: io::Error },
    #[error(
        "another agent works with {}\nhint: one agent a machine; end the other one, or give this one its own --state folder", path.display()
    )]
    Taken { path: PathBuf },
    #[error(
        "this node has not joined: {} holds no identity\nhint: `ctl token create` on the scheduler prints a token; pass it with --token", path.display()
    )]
    NotJoined { path: PathBuf },
    #[error(
        "the identity in {} has expired\nhint: join again: `ctl token create` on the scheduler prints a token; pass it with --token", path.display()
    )]
    Expired { path: PathBuf },
    #[error("the identity in {} is that of a user\nhint: give the agent a folder of its own: --state", path.display())]
    NotANode { path: PathBuf },
    #[error("`{token}` is not a join token\nhint: copy the whole line that `ctl token create` printed")]
    Token { token: String },
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("the kernel tells nothing about this machine: {source}")]
    Facts { source: io::Error },
    #[error("the agent's task ended by itself: {message}")]
    Task { message: String },
}
