//! Becoming a node: the identity in the state folder, or a token for one.

use std::path::Path;
use std::time::SystemTime;

use motley_scheduler_core::id::NodeId;
use motley_scheduler_core::wire::join::Principal;
use motley_scheduler_link::{Identity, Token, join, save_scheduler_address};

use crate::error::NodeError;

/// Reads the identity in `folder`, or joins with the token and saves one there. A token is not spent while the
/// identity is good.
pub(crate) async fn identity(
    folder: &Path,
    scheduler: &str,
    token: Option<&str>,
    name: &str,
) -> Result<(NodeId, Identity), NodeError> {
    let path = || folder.to_path_buf();
    if folder.join("certificate.pem").exists() {
        let identity = Identity::load(folder)?;
        if identity.expires() > SystemTime::now() {
            return Ok((node(&identity, folder)?, identity));
        }
        if token.is_none() {
            return Err(NodeError::Expired { path: path() });
        }
    }
    let token = token.ok_or_else(|| NodeError::NotJoined { path: path() })?;
    // The text is a secret: only its beginning is repeated.
    let shown = || token.chars().take(12).chain("...".chars()).collect();
    let parsed: Token = token.trim().parse().map_err(|_| NodeError::Token { token: shown() })?;
    let identity = join(scheduler, &parsed, name).await?;
    let node = node(&identity, folder)?;
    identity.save(folder)?;
    save_scheduler_address(folder, scheduler)?;
    tracing::info!(%node, scheduler, "joined");
    Ok((node, identity))
}

fn node(identity: &Identity, folder: &Path) -> Result<NodeId, NodeError> {
    match identity.principal() {
        Principal::Node { node } => Ok(*node),
        Principal::User { .. } => Err(NodeError::NotANode { path: folder.to_path_buf() }),
    }
}
