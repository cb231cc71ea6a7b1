//! Blobs in and out: one stream a request, raw bytes behind it, back-pressure from disk to sender.

use std::sync::Arc;

use motley_scheduler_core::authorize::{Operation, authorize};
use motley_scheduler_core::unit::Bytes;
use motley_scheduler_core::wire::bulk::{BulkReply, BulkRequest, HASHES_MAX};
use motley_scheduler_core::wire::join::Principal;
use motley_scheduler_link::{Channel, LinkError};

use super::Shared;
use crate::blobs::BlobError;

pub(super) async fn serve(
    mut channel: Channel,
    shared: Arc<Shared>,
    principal: Principal,
) -> Result<(), LinkError> {
    let request: BulkRequest = channel.receiver.receive_first("request").await?;
    let operation = match request {
        BulkRequest::Missing { .. } | BulkRequest::Put { .. } => Operation::StoreBlobs,
        BulkRequest::Get { .. } => Operation::ReadArtifacts,
    };
    let result = match authorize(&principal, operation) {
        Err(error) => Err(error.to_string()),
        Ok(()) => answer(request, &mut channel, &shared).await?,
    };
    if let Err(reason) = result {
        tracing::warn!(?principal, "blob request refused: {}", reason.lines().next().unwrap_or_default());
        channel.receiver.stop(motley_scheduler_link::CloseCode::Failed);
        channel.send(&BulkReply::Refused { reason }).await?;
    }
    channel.finish();
    Ok(())
}

/// The inner error is told to the asker; the outer one is a connection that is gone.
async fn answer(
    request: BulkRequest,
    channel: &mut Channel,
    shared: &Shared,
) -> Result<Result<(), String>, LinkError> {
    let result = match request {
        BulkRequest::Missing { hashes } if hashes.len() > HASHES_MAX => {
            return Ok(Err(format!("{} hashes in one question; at most {HASHES_MAX}", hashes.len())));
        }
        BulkRequest::Missing { hashes } => match shared.blobs.missing(&hashes).await {
            Ok(hashes) => return channel.send(&BulkReply::Missing { hashes }).await.map(Ok),
            Err(error) => Err(error),
        },
        BulkRequest::Put { hash, size } => match shared.blobs.put(hash, size, &mut channel.receiver).await {
            Ok(()) => return channel.send(&BulkReply::Stored).await.map(Ok),
            Err(error) => Err(error),
        },
        BulkRequest::Get { hash, offset } => match shared.blobs.size(hash).await {
            Ok(None) => return channel.send(&BulkReply::Missing { hashes: vec![hash] }).await.map(Ok),
            Ok(Some(size)) if offset.0 <= size => {
                channel.send(&BulkReply::Found { size: Bytes(size) }).await?;
                match shared.blobs.get(hash, (offset.0, size), &mut channel.sender).await {
                    Ok(()) => Ok(()),
                    // The asker counts bytes: a reply among them would be taken for some.
                    Err(error) => {
                        channel.sender.abort(motley_scheduler_link::CloseCode::Failed);
                        return Err(LinkError::Closed { reason: error.to_string() });
                    }
                }
            }
            Ok(Some(size)) => Err(BlobError::Offset { hash, size, offset: offset.0 }),
            Err(error) => Err(error),
        },
    };
    match result {
        Ok(()) => Ok(Ok(())),
        Err(BlobError::Link(error @ (LinkError::Closed { .. } | LinkError::Timeout { .. }))) => Err(error),
        Err(error) => Ok(Err(error.to_string())),
    }
}
