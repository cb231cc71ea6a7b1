//! Connections, by what they are for. Every connection is a task with its streams as children: when it ends, they do.

mod agent;
mod bulk;
mod client;
mod follow;
mod join;

use std::sync::Arc;
use std::time::SystemTime;

use motley_scheduler_core::id::ContentHash;
use motley_scheduler_core::wire::join::Principal;
use motley_scheduler_core::wire::{ALPN_AGENT, ALPN_BULK, ALPN_CLIENT, ALPN_JOIN};
use motley_scheduler_link::{Authority, Channel, CloseCode, Incoming, LinkError, Server};
use tokio::task::JoinSet;

use crate::blobs::Blobs;
use crate::engine::Handle;
use crate::logs::Logs;
use crate::outside::LogWriter;
use crate::watchers::Watchers;

/// What connections work with.
#[derive(Debug)]
pub(crate) struct Shared {
    pub engine: Handle,
    pub blobs: Blobs,
    pub logs: Logs,
    pub log_writer: LogWriter,
    pub watchers: Arc<Watchers>,
    pub authority: Arc<Authority>,
    pub fingerprint: ContentHash,
}

/// Serves until the server is closed; dropped, it ends every connection.
pub(crate) async fn serve_all(
    mut server: Server,
    shared: Arc<Shared>,
    mut stop: tokio::sync::oneshot::Receiver<()>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            incoming = server.accept() => match incoming {
                Some(incoming) => drop(connections.spawn(serve_in_date(incoming, shared.clone()))),
                None => break,
            },
            // Ended connections are let go, one at a time.
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!("connection task failed: {error}");
                }
            }
            _ = &mut stop => break,
        }
    }
    // The reason first: a connection whose task is gone closes without one.
    server.shut_down("the scheduler stops").await;
    connections.shutdown().await;
}

/// Serves a connection until its certificate ends; members with a newer one dial again.
async fn serve_in_date(incoming: Incoming, shared: Arc<Shared>) {
    let Some(expires) = incoming.expires else { return serve(incoming, shared).await };
    let left = expires.duration_since(SystemTime::now()).unwrap_or_default();
    let link = incoming.link.clone();
    let mut serving = std::pin::pin!(serve(incoming, shared));
    if tokio::time::timeout(left, &mut serving).await.is_err() {
        link.close(CloseCode::Denied, "the certificate has expired\nhint: join again with a new token");
        // Whoever serves it sees the end and cleans up.
        serving.await;
    }
}

async fn serve(incoming: Incoming, shared: Arc<Shared>) {
    match (incoming.alpn, incoming.principal.clone()) {
        (ALPN_JOIN, _) => join::serve(&incoming, &shared).await,
        (ALPN_AGENT, Some(Principal::Node { node })) => agent::serve(incoming, node, &shared).await,
        (ALPN_CLIENT, Some(principal)) => {
            let serve = client::serve;
            streams(&incoming, move |channel| serve(channel, shared.clone(), principal.clone())).await;
        }
        (ALPN_BULK, Some(principal)) => {
            let serve = bulk::serve;
            streams(&incoming, move |channel| serve(channel, shared.clone(), principal.clone())).await;
        }
        // The server has checked that certificate and protocol fit each other.
        _ => tracing::error!(remote = %incoming.remote, "connection that fits no protocol"),
    }
}

/// Serves each stream of a connection by a task of its own.
async fn streams<F>(incoming: &Incoming, serve: impl Fn(Channel) -> F)
where
    F: Future<Output = Result<(), LinkError>> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            channel = incoming.link.accept() => match channel {
                Ok(channel) => drop(tasks.spawn(serve(channel))),
                Err(_) => break,
            },
            Some(ended) = tasks.join_next() => note(incoming, ended),
        }
    }
}

fn note(incoming: &Incoming, ended: Result<Result<(), LinkError>, tokio::task::JoinError>) {
    let remote = incoming.remote;
    match ended {
        // Whoever goes away in the middle of an answer is no news.
        Ok(Ok(()) | Err(LinkError::Closed { .. })) => {}
        Ok(Err(error)) => tracing::warn!(%remote, "request dropped: {error}"),
        Err(error) => tracing::error!(%remote, "request failed: {error}"),
    }
}
