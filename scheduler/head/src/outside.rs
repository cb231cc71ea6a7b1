//! What the engine does to the world, after the commit: it talks to agents, writes logs, signs certificates, wakes
//! watchers. Nothing here waits for a peer.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use motley_scheduler_core::cluster::{Action, Change};
use motley_scheduler_core::id::{AttemptId, Epoch, NodeId};
use motley_scheduler_core::wire::agent::{Outcome, ToAgent};
use motley_scheduler_core::wire::join::Principal;
use motley_scheduler_link::{Authority, Validity};
use tokio::sync::{mpsc, oneshot};

use crate::HeadError;
use crate::agents::Agents;
use crate::logs::Logs;
use crate::watchers::Watchers;

/// Of a node's certificate; agents renew at two thirds.
pub(crate) const NODE_VALID: Duration = Duration::from_secs(24 * 3600);

/// Log chunks that wait for the disk: 256 KiB each, so at most 64 MiB.
const LOG_QUEUE: usize = 256;

#[derive(Debug, Clone)]
pub(crate) struct Outside {
    pub agents: Arc<Agents>,
    pub watchers: Arc<Watchers>,
    pub authority: Arc<Authority>,
    pub logs: LogWriter,
}

/// The thread that appends to log files.
#[derive(Debug, Clone)]
pub(crate) struct LogWriter {
    queue: mpsc::Sender<LogCommand>,
}

#[derive(Debug)]
enum LogCommand {
    Append { node: NodeId, attempt: AttemptId, epoch: Epoch, offset: u64, bytes: Vec<u8> },
    Flush(oneshot::Sender<()>),
}

impl Outside {
    pub(crate) async fn act(&self, action: Action) {
        match action {
            Action::SendAgent { node, message } => self.agents.send(node, message),
            Action::Disconnect { node, reason } => {
                tracing::warn!(%node, "agent disconnected: {reason}");
                self.agents.disconnect(node, &reason);
            }
            Action::JobChanged { job } => self.watchers.notify(job),
            Action::AppendLog { node, attempt, epoch, offset, bytes } => {
                self.logs.send(LogCommand::Append { node, attempt, epoch, offset, bytes }).await;
            }
            Action::RenewCertificate { node, certificate_request } => self.renew(node, &certificate_request),
            // The engine answers its askers itself.
            Action::Submitted { .. }
            | Action::Cancelled { .. }
            | Action::TokenStored { .. }
            | Action::Admit { .. }
            | Action::Refuse { .. } => {}
        }
    }

    fn renew(&self, node: NodeId, request: &[u8]) {
        let validity = Validity::starting(SystemTime::now(), NODE_VALID);
        match self.authority.sign(request, &Principal::Node { node }, validity) {
            Ok(certificate) => {
                tracing::info!(%node, "certificate renewed");
                let valid_seconds = NODE_VALID.as_secs();
                self.agents.send(node, ToAgent::Certificate { certificate, valid_seconds });
            }
            Err(error) => {
                tracing::warn!(%node, "certificate not renewed: {error}");
                self.agents.send(node, ToAgent::Refused { reason: error.to_string() });
            }
        }
    }
}

impl LogWriter {
    pub(crate) fn start(
        logs: Logs,
        agents: Arc<Agents>,
        watchers: Arc<Watchers>,
    ) -> Result<LogWriter, HeadError> {
        let (sender, mut queue) = mpsc::channel(LOG_QUEUE);
        let run = move || {
            while let Some(command) = queue.blocking_recv() {
                match command {
                    LogCommand::Append { node, attempt, epoch, offset, bytes } => {
                        match logs.append(attempt, offset, &bytes) {
                            Ok(offset) => agents.send(node, ToAgent::LogStored { attempt, epoch, offset }),
                            Err(error) => tracing::error!(%attempt, "log not stored: {error}"),
                        }
                        watchers.notify(attempt.job);
                    }
                    // A waiter that is gone needs no answer.
                    LogCommand::Flush(done) => drop(done.send(())),
                }
            }
        };
        std::thread::Builder::new()
            .name("logs".into())
            .spawn(run)
            .map_err(|error| HeadError::Ended { what: "log thread", reason: error.to_string() })?;
        Ok(LogWriter { queue: sender })
    }

    /// Waits until everything queued before is in its file.
    pub(crate) async fn flush(&self) {
        let (done, waited) = oneshot::channel();
        self.send(LogCommand::Flush(done)).await;
        let _ = waited.await;
    }

    async fn send(&self, command: LogCommand) {
        // The thread ends with its senders, so it is there.
        let _ = self.queue.send(command).await;
    }
}

/// One line per change of state.
pub(crate) fn log_change(change: &Change) {
    match change {
        Change::JobAdded { job, submission, .. } => {
            tracing::info!(%job, name = %submission.name, owner = %submission.owner, "job added");
        }
        Change::AttemptLeased { attempt, node, device, .. } => {
            tracing::info!(%attempt, %node, device, "attempt leased");
        }
        Change::CheckpointRecorded { attempt, artifact } => {
            tracing::info!(%attempt, kind = ?artifact.kind, "checkpoint recorded");
        }
        Change::AttemptEnded { attempt, reason: Some(reason), .. } => {
            tracing::warn!(%attempt, %reason, "attempt ended");
        }
        Change::JobEnded { job, outcome: Outcome::Failed { reason, message }, .. } => {
            tracing::warn!(%job, %reason, "job failed: {message}");
        }
        Change::JobEnded { job, outcome, .. } => tracing::info!(%job, ?outcome, "job ended"),
        Change::NodeAdded { node, name, .. } => tracing::info!(%node, name, "node added"),
        Change::NodeReported { node, facts, .. } => {
            tracing::info!(%node, devices = facts.devices.len(), build = %facts.build, "node reported");
        }
        Change::TokenAdded { grants, .. } => tracing::info!(?grants, "token made"),
        other => tracing::info!(subject = %subject(other), "{}", other.name()),
    }
}

/// The job, attempt or node that a change is about.
fn subject(change: &Change) -> String {
    match change {
        Change::CancelAsked { job, .. }
        | Change::JobRequeued { job, .. }
        | Change::ChoiceAdded { job, .. } => {
            format!("job {job}")
        }
        Change::DevicesReported { node, .. } => format!("node {node}"),
        Change::AttemptStarted { attempt, .. } | Change::AttemptEnded { attempt, .. } => {
            format!("attempt {attempt}")
        }
        _ => String::new(),
    }
}
