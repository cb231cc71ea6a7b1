//! The real way to the scheduler: one QUIC connection for messages, another for blobs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use motley_scheduler_core::id::ContentHash;
use motley_scheduler_core::unit::Bytes;
use motley_scheduler_core::wire::ALPN_AGENT;
use motley_scheduler_core::wire::agent::{FromAgent, ToAgent};
use motley_scheduler_link::{
    Bulk, CloseCode, Identity, Link, LinkError, LocalFile, PendingIdentity, Receiver, Sender, connect,
};
use tokio::sync::mpsc;

use super::{Answer, BlobStore, Connection, LocalBlob, QUEUE_MESSAGES, Uplink, UplinkError};

/// Dials one scheduler with the identity of one node.
pub(crate) struct QuicUplink {
    address: String,
    /// Where a renewed identity is saved.
    folder: PathBuf,
    identity: Mutex<Identity>,
    pending: Mutex<Option<PendingIdentity>>,
}

impl QuicUplink {
    pub(crate) fn new(address: String, folder: PathBuf, identity: Identity) -> Self {
        QuicUplink { address, folder, identity: Mutex::new(identity), pending: Mutex::new(None) }
    }

    fn identity(&self) -> MutexGuard<'_, Identity> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn dial(&self) -> Result<Connection, LinkError> {
        let identity = self.identity().clone();
        let link = connect(&self.address, ALPN_AGENT, &identity).await?;
        let version = link.version();
        let (sender, receiver) = link.open().await?.split();
        let (outbox, outgoing) = mpsc::channel(QUEUE_MESSAGES);
        let (incoming, inbox) = mpsc::channel(QUEUE_MESSAGES);
        tokio::spawn(write(link.clone(), sender, outgoing));
        tokio::spawn(read(link, receiver, incoming));
        let address = self.address.clone();
        let blobs = Arc::new(QuicBlobs { address, identity, bulk: tokio::sync::Mutex::new(None) });
        Ok(Connection { outbox, inbox, blobs, version })
    }
}

/// Ends with the connection, or when nobody sends any more.
async fn write(link: Link, mut sender: Sender, mut outgoing: mpsc::Receiver<FromAgent>) {
    while let Some(message) = outgoing.recv().await {
        if let Err(error) = sender.send(&message).await {
            tracing::debug!(%error, "connection to the scheduler cannot be written");
            link.close(CloseCode::Failed, "cannot be written");
            return;
        }
    }
}

/// Ends with the connection, or when nobody reads any more; then closes it.
async fn read(link: Link, mut receiver: Receiver, incoming: mpsc::Sender<ToAgent>) {
    loop {
        let message = tokio::select! {
            message = receiver.receive::<ToAgent>() => message,
            () = incoming.closed() => return link.shut_down("agent ends").await,
        };
        match message {
            Ok(Some(message)) => {
                if incoming.send(message).await.is_err() {
                    return link.shut_down("agent ends").await;
                }
            }
            Ok(None) => return link.close(CloseCode::Done, "scheduler has finished"),
            Err(error) => {
                tracing::warn!(%error, "connection to the scheduler is over");
                return link.close(CloseCode::Failed, "cannot be read");
            }
        }
    }
}

impl Uplink for QuicUplink {
    fn connect(&self) -> Answer<'_, Connection> {
        Box::pin(async { self.dial().await.map_err(failed) })
    }

    fn renew_at(&self) -> Option<SystemTime> {
        Some(self.identity().renew_at())
    }

    fn begin_renewal(&self) -> Result<Vec<u8>, UplinkError> {
        let pending = Identity::request().map_err(failed)?;
        let request = pending.request_der().to_vec();
        *self.pending.lock().unwrap_or_else(PoisonError::into_inner) = Some(pending);
        Ok(request)
    }

    fn finish_renewal(&self, certificate: &[u8]) -> Result<(), UplinkError> {
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(pending) = pending else { return Ok(()) };
        let mut identity = self.identity();
        let renewed = pending.finish(certificate, identity.authority()).map_err(failed)?;
        if renewed.principal() != identity.principal() {
            return Err(UplinkError::Refused("the renewed certificate names somebody else".into()));
        }
        renewed.save(&self.folder).map_err(failed)?;
        *identity = renewed;
        Ok(())
    }
}

/// Blobs over a connection of their own, made when first needed and again when it broke.
struct QuicBlobs {
    address: String,
    identity: Identity,
    bulk: tokio::sync::Mutex<Option<Bulk>>,
}

impl QuicBlobs {
    async fn bulk(&self) -> Result<Bulk, LinkError> {
        let mut kept = self.bulk.lock().await;
        if let Some(bulk) = &*kept {
            return Ok(bulk.clone());
        }
        let bulk = Bulk::connect(&self.address, &self.identity).await?;
        *kept = Some(bulk.clone());
        Ok(bulk)
    }

    /// Forgets a connection that failed, so that the next call makes a new one.
    async fn judge<T>(&self, result: Result<T, LinkError>) -> Result<T, UplinkError> {
        if result.as_ref().is_err_and(LinkError::is_transient) {
            *self.bulk.lock().await = None;
        }
        result.map_err(failed)
    }
}

impl BlobStore for QuicBlobs {
    fn missing(&self, hashes: Vec<ContentHash>) -> Answer<'_, Vec<ContentHash>> {
        Box::pin(async move {
            let result = async { self.bulk().await?.missing(&hashes).await }.await;
            self.judge(result).await
        })
    }

    fn put(&self, blob: LocalBlob) -> Answer<'_, ()> {
        Box::pin(async move {
            let file = LocalFile { path: blob.path, hash: blob.hash, size: Bytes(blob.size) };
            let result = async { self.bulk().await?.upload(&file).await }.await;
            self.judge(result).await
        })
    }

    fn get<'a>(&'a self, hash: ContentHash, path: &'a Path) -> Answer<'a, ()> {
        Box::pin(async move {
            let result = async { self.bulk().await?.download(hash, path).await }.await;
            self.judge(result).await.map(|_| ())
        })
    }
}

fn failed(error: LinkError) -> UplinkError {
    if error.is_transient() {
        UplinkError::Lost(error.to_string())
    } else {
        UplinkError::Refused(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use motley_scheduler_core::id::NodeId;
    use motley_scheduler_core::unit::Span;
    use motley_scheduler_core::wire::agent::NodeFacts;
    use motley_scheduler_core::wire::bulk::{BulkReply, BulkRequest};
    use motley_scheduler_core::wire::join::Principal;
    use motley_scheduler_link::{Authority, Server, Validity};
    use sha2::{Digest, Sha256};

    use super::*;

    const NODE: Principal = Principal::Node { node: NodeId(3) };

    fn validity() -> Validity {
        Validity::starting(SystemTime::now(), Duration::from_secs(3600))
    }

    /// Answers a report with a welcome and signs renewals; keeps blobs.
    async fn play(mut server: Server, authority: Authority) {
        let mut blobs = BTreeMap::new();
        while let Some(incoming) = server.accept().await {
            while let Ok(mut channel) = incoming.link.accept().await {
                if incoming.alpn == ALPN_AGENT {
                    while let Ok(Some(message)) = channel.receive().await {
                        let span = Span::from_seconds(1);
                        let reply = match message {
                            FromAgent::Report { .. } => {
                                ToAgent::Welcome { lease: span, beat: span, keep_running: span }
                            }
                            FromAgent::RenewCertificate { certificate_request: request } => {
                                let certificate = authority.sign(&request, &NODE, validity()).unwrap();
                                ToAgent::Certificate { certificate, valid_seconds: 3600 }
                            }
                            _ => break,
                        };
                        channel.send(&reply).await.unwrap();
                    }
                    break;
                }
                match channel.receive().await.unwrap().unwrap() {
                    BulkRequest::Missing { mut hashes } => {
                        hashes.retain(|hash| !blobs.contains_key(hash));
                        channel.send(&BulkReply::Missing { hashes }).await.unwrap();
                    }
                    BulkRequest::Put { hash, size } => {
                        let mut bytes = Vec::new();
                        assert_eq!(channel.receiver.receive_raw(&mut bytes, size).await.unwrap(), hash);
                        blobs.insert(hash, bytes);
                        channel.send(&BulkReply::Stored).await.unwrap();
                    }
                    BulkRequest::Get { hash, .. } => match blobs.get(&hash) {
                        Some(bytes) => {
                            let size = Bytes(bytes.len() as u64);
                            channel.send(&BulkReply::Found { size }).await.unwrap();
                            channel.sender.send_raw(&mut bytes.as_slice(), size).await.unwrap();
                        }
                        None => channel.send(&BulkReply::Missing { hashes: vec![hash] }).await.unwrap(),
                    },
                }
                channel.finish();
            }
        }
    }

    #[tokio::test]
    async fn messages_renewals_and_blobs_go_over_quic() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create().unwrap();
        let identity = authority.issue(&NODE, validity()).unwrap();
        let server = Server::bind("127.0.0.1:0".parse().unwrap(), &authority).unwrap();
        let address = server.local_address().to_string();
        tokio::spawn(play(server, authority));
        let uplink = QuicUplink::new(address, folder.path().join("identity"), identity);
        let mut connection = uplink.connect().await.unwrap();
        let facts = NodeFacts {
            name: "n".into(),
            boot: "b".into(),
            build: "0".into(),
            devices: Vec::new(),
            cores: 1,
            memory: Bytes(1),
        };
        connection.outbox.send(FromAgent::Report { facts, attempts: Vec::new() }).await.unwrap();
        assert!(matches!(connection.inbox.recv().await, Some(ToAgent::Welcome { .. })));

        let before = uplink.renew_at();
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let certificate_request = uplink.begin_renewal().unwrap();
        connection.outbox.send(FromAgent::RenewCertificate { certificate_request }).await.unwrap();
        let Some(ToAgent::Certificate { certificate, .. }) = connection.inbox.recv().await else {
            panic!("a certificate was due")
        };
        uplink.finish_renewal(&certificate).unwrap();
        assert!(uplink.renew_at() > before);
        assert_eq!(*Identity::load(&folder.path().join("identity")).unwrap().principal(), NODE);

        // The agent lets go of the connection: the next one uses the new certificate.
        drop(connection);
        let connection = uplink.connect().await.unwrap();
        let blobs = Arc::clone(&connection.blobs);
        drop(connection);
        let path = folder.path().join("a");
        std::fs::write(&path, b"some bytes").unwrap();
        let hash = ContentHash(Sha256::digest(b"some bytes").into());
        assert_eq!(blobs.missing(vec![hash]).await, Ok(vec![hash]));
        let fetched = folder.path().join("b");
        assert!(matches!(blobs.get(hash, &fetched).await, Err(UplinkError::Refused(_))));
        let blob = LocalBlob { hash, size: 10, path };
        blobs.put(blob.clone()).await.unwrap();
        assert_eq!(blobs.missing(vec![hash]).await, Ok(Vec::new()));
        blobs.get(hash, &fetched).await.unwrap();
        assert_eq!(std::fs::read(&fetched).unwrap(), b"some bytes");
        std::fs::write(&blob.path, b"other byte").unwrap();
        assert!(matches!(blobs.put(blob).await, Err(UplinkError::Refused(_))), "changed since it was hashed");
    }

    #[tokio::test]
    async fn nobody_at_the_other_end_is_worth_another_try() {
        let authority = Authority::create().unwrap();
        let identity = authority.issue(&NODE, validity()).unwrap();
        // Held, so that nobody else takes it, and closed for all but one peer.
        let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        closed.connect(closed.local_addr().unwrap()).unwrap();
        let address = closed.local_addr().unwrap().to_string();
        let uplink = QuicUplink::new(address, PathBuf::new(), identity);
        assert!(matches!(uplink.connect().await.map(|_| ()), Err(UplinkError::Lost(_))));
    }
}
