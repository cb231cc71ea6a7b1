//! A node's connection: one stream, a report first, then whatever either side has to say.

use std::time::Duration;

use motley_scheduler_core::id::NodeId;
use motley_scheduler_core::wire::agent::{FromAgent, ToAgent};
use motley_scheduler_link::settings::FIRST_MESSAGE_SECONDS;
use motley_scheduler_link::{CloseCode, Incoming, LinkError, Receiver, Sender};
use tokio::sync::mpsc;

use super::Shared;
use crate::agents::{Connection, OUTBOX};
use crate::engine::Input;

pub(super) async fn serve(incoming: Incoming, node: NodeId, shared: &Shared) {
    let (report, sender, mut receiver) = match first_report(&incoming).await {
        Ok(parts) => parts,
        Err(error) => {
            tracing::warn!(%node, remote = %incoming.remote, "agent refused: {error}");
            incoming.link.close(CloseCode::Protocol, &error.to_string());
            return;
        }
    };
    let connection = shared.engine.new_connection();
    let (outbox, queue) = mpsc::channel(OUTBOX);
    let link = incoming.link.clone();
    shared.engine.send(Input::AgentConnected { node, connection, link, outbox }).await;
    shared.engine.send(Input::AgentSaid { node, connection, message: report }).await;
    let error = tokio::select! {
        error = hear(node, connection, &mut receiver, shared) => error,
        error = speak(sender, queue) => error,
    };
    if !matches!(error, LinkError::Closed { .. }) {
        tracing::warn!(%node, "agent's connection ends: {error}");
    }
    incoming.link.close(CloseCode::Protocol, &error.to_string());
    shared.engine.send(Input::AgentGone { node, connection }).await;
}

async fn first_report(incoming: &Incoming) -> Result<(FromAgent, Sender, Receiver), LinkError> {
    let patience = Duration::from_secs(FIRST_MESSAGE_SECONDS);
    let accepted = tokio::time::timeout(patience, incoming.link.accept()).await;
    let channel =
        accepted.map_err(|_| LinkError::Timeout { what: "report", seconds: FIRST_MESSAGE_SECONDS })??;
    let (sender, mut receiver) = channel.split();
    match receiver.receive_first("report").await? {
        report @ (FromAgent::Report { .. } | FromAgent::ReportDevices { .. }) => {
            Ok((report, sender, receiver))
        }
        _ => Err(LinkError::Unexpected { expected: "a report", found: "another message".into() }),
    }
}

async fn hear(node: NodeId, connection: Connection, receiver: &mut Receiver, shared: &Shared) -> LinkError {
    loop {
        match receiver.receive().await {
            Ok(Some(message)) => {
                shared.engine.send(Input::AgentSaid { node, connection, message }).await;
            }
            Ok(None) => return LinkError::Closed { reason: "the agent has finished".into() },
            Err(error) => return error,
        }
    }
}

async fn speak(mut sender: Sender, mut queue: mpsc::Receiver<ToAgent>) -> LinkError {
    while let Some(message) = queue.recv().await {
        if let Err(error) = sender.send(&message).await {
            return error;
        }
    }
    LinkError::Closed { reason: "a newer connection of the node has taken over".into() }
}
