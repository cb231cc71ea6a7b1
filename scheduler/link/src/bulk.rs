//! Files by content, to and from the scheduler: what agents and `ctl` share.
//!
//! Everything is named by its hash, so an upload that was done twice did nothing the second time, and a download
//! proves itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use motley_scheduler_core::id::ContentHash;
use motley_scheduler_core::unit::Bytes;
use motley_scheduler_core::wire::ALPN_BULK;
use motley_scheduler_core::wire::bulk::{BulkReply, BulkRequest, HASHES_MAX};
use sha2::{Digest, Sha256};
use tokio::io::AsyncRead;
use tokio::task::JoinSet;

use crate::raw::hash_file;
use crate::settings::{REPLY_SECONDS, STALL_SECONDS};
use crate::{Channel, Identity, Link, LinkError, connect, scheduler_address};

/// Files sent at once: enough to hide one file's round trips and disk behind another's bytes.
const UPLOADS_AT_ONCE: usize = 4;

/// A connection to a scheduler, for contents.
#[derive(Debug, Clone)]
pub struct Bulk {
    link: Link,
}

/// A file of this machine, by content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalFile {
    pub path: PathBuf,
    pub hash: ContentHash,
    pub size: Bytes,
}

impl LocalFile {
    /// Reads and hashes a file. Blocks: for a thread of its own.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(path: &Path) -> Result<LocalFile, LinkError> {
        let (hash, size) = hash_file(path)?;
        Ok(LocalFile { path: path.to_owned(), hash, size })
    }
}

impl Bulk {
    /// Connects as the member of `identity`.
    ///
    /// # Errors
    /// As [`connect`].
    pub async fn connect(address: &str, identity: &Identity) -> Result<Bulk, LinkError> {
        Ok(Bulk { link: connect(address, ALPN_BULK, identity).await? })
    }

    /// Connects with the identity and the address of a folder.
    ///
    /// # Errors
    /// The folder is incomplete, or as [`connect`].
    pub async fn open(folder: &Path) -> Result<Bulk, LinkError> {
        let address = scheduler_address(folder)?;
        Bulk::connect(&address, &Identity::load(folder)?).await
    }

    /// Which of these are not stored.
    ///
    /// # Errors
    /// The connection is gone, or the scheduler refuses.
    pub async fn missing(&self, hashes: &[ContentHash]) -> Result<Vec<ContentHash>, LinkError> {
        let mut missing = Vec::new();
        for hashes in hashes.chunks(HASHES_MAX) {
            let mut channel = self.ask(&BulkRequest::Missing { hashes: hashes.to_vec() }).await?;
            channel.finish();
            match channel.receiver.receive_within("reply", REPLY_SECONDS).await? {
                BulkReply::Missing { hashes } => missing.extend(hashes),
                other => return Err(unexpected("a list of hashes", other)),
            }
        }
        Ok(missing)
    }

    /// Sends those files that are not stored, a few at once. Returns the bytes sent.
    ///
    /// # Errors
    /// The first that occurs; what was stored by then stays stored.
    pub async fn upload_missing(&self, files: &[LocalFile]) -> Result<Bytes, LinkError> {
        let files: BTreeMap<ContentHash, &LocalFile> = files.iter().map(|file| (file.hash, file)).collect();
        let hashes: Vec<ContentHash> = files.keys().copied().collect();
        let missing = self.missing(&hashes).await?;
        let mut sent = 0;
        let mut uploads = JoinSet::new();
        for hash in missing {
            let Some(&file) = files.get(&hash) else { continue };
            let file = file.clone();
            if uploads.len() >= UPLOADS_AT_ONCE {
                sent += finished(uploads.join_next().await)?;
            }
            let bulk = self.clone();
            uploads.spawn(async move { bulk.upload(&file).await.map(|()| file.size.0) });
        }
        while !uploads.is_empty() {
            sent += finished(uploads.join_next().await)?;
        }
        Ok(Bytes(sent))
    }

    /// Sends a file.
    ///
    /// # Errors
    /// The file has changed since it was hashed or cannot be read, the connection is gone, or the scheduler refuses.
    pub async fn upload(&self, file: &LocalFile) -> Result<(), LinkError> {
        let open = tokio::fs::File::open(&file.path).await;
        let mut reader = open.map_err(|error| LinkError::file(&file.path, error))?;
        self.put(&mut reader, file.hash, file.size).await.map_err(|error| match error {
            LinkError::File { source, .. } => LinkError::file(&file.path, source),
            LinkError::Truncated { .. } => LinkError::file(
                &file.path,
                std::io::Error::other("it has become shorter while it was uploaded"),
            ),
            other => other,
        })
    }

    /// Sends a small blob, such as a manifest; returns its name.
    ///
    /// # Errors
    /// The connection is gone, or the scheduler refuses.
    pub async fn upload_bytes(&self, bytes: &[u8]) -> Result<ContentHash, LinkError> {
        let hash = ContentHash(Sha256::digest(bytes).into());
        let mut reader = bytes;
        self.put(&mut reader, hash, Bytes(bytes.len() as u64)).await?;
        Ok(hash)
    }

    /// Fetches a blob into a file: first beside it, renamed when it has proved itself. Returns its size.
    ///
    /// # Errors
    /// [`LinkError::NotStored`], [`LinkError::HashMismatch`], a file that cannot be written, a lost connection.
    pub async fn download(&self, hash: ContentHash, path: &Path) -> Result<Bytes, LinkError> {
        let error = |error| LinkError::file(path, error);
        let (mut channel, size) = self.get(hash).await?;
        let partial = path.with_extension(format!("partial-{}", std::process::id()));
        let result = async {
            let file = tokio::fs::File::create(&partial).await.map_err(error)?;
            // Packets are small, and every write goes to another thread: a megabyte at once.
            let mut file = tokio::io::BufWriter::with_capacity(1 << 20, file);
            let found =
                channel.receiver.receive_raw(&mut file, size).await.map_err(|failure| match failure {
                    LinkError::File { source, .. } => error(source),
                    other => other,
                })?;
            check(hash, found)?;
            file.get_ref().sync_all().await.map_err(error)?;
            tokio::fs::rename(&partial, path).await.map_err(error)
        }
        .await;
        if result.is_err() {
            let _ = tokio::fs::remove_file(&partial).await;
        }
        result.map(|()| size)
    }

    /// Fetches a small blob, such as a manifest.
    ///
    /// # Errors
    /// As [`Bulk::download`]; the blob is above `limit`.
    pub async fn download_bytes(&self, hash: ContentHash, limit: Bytes) -> Result<Vec<u8>, LinkError> {
        let (mut channel, size) = self.get(hash).await?;
        if size > limit {
            return Err(LinkError::TooLarge { size, limit });
        }
        let mut bytes = Vec::new();
        let found = channel.receiver.receive_raw(&mut bytes, size).await?;
        check(hash, found)?;
        Ok(bytes)
    }

    /// Says good-bye.
    pub async fn close(&self) {
        self.link.shut_down("done").await;
    }

    async fn ask(&self, request: &BulkRequest) -> Result<Channel, LinkError> {
        let mut channel = self.link.open().await?;
        channel.send(request).await?;
        Ok(channel)
    }

    async fn put<R: AsyncRead + Unpin>(
        &self,
        reader: &mut R,
        hash: ContentHash,
        size: Bytes,
    ) -> Result<(), LinkError> {
        let mut channel = self.ask(&BulkRequest::Put { hash, size }).await?;
        match channel.sender.send_raw(reader, size).await {
            Ok(found) if found != hash => {
                channel.sender.abort(crate::CloseCode::Failed);
                check(hash, found)?;
            }
            Ok(_) => channel.finish(),
            // The scheduler stops reading when it has the blob already, or has no room for it: its reply says which.
            Err(error @ LinkError::Closed { .. }) => {
                let reply = channel.receiver.receive_within("reply", STALL_SECONDS).await;
                return reply.map_err(|_| error).and_then(stored);
            }
            Err(error) => {
                channel.sender.abort(crate::CloseCode::Failed);
                return Err(error);
            }
        }
        stored(channel.receiver.receive_within("reply", REPLY_SECONDS).await?)
    }

    async fn get(&self, hash: ContentHash) -> Result<(Channel, Bytes), LinkError> {
        let mut channel = self.ask(&BulkRequest::Get { hash, offset: Bytes(0) }).await?;
        channel.finish();
        match channel.receiver.receive_within("reply", REPLY_SECONDS).await? {
            BulkReply::Found { size } => Ok((channel, size)),
            BulkReply::Missing { .. } => Err(LinkError::NotStored { hash }),
            other => Err(unexpected("a blob", other)),
        }
    }
}

fn stored(reply: BulkReply) -> Result<(), LinkError> {
    match reply {
        BulkReply::Stored => Ok(()),
        other => Err(unexpected("`stored`", other)),
    }
}

fn check(expected: ContentHash, found: ContentHash) -> Result<(), LinkError> {
    if found == expected {
        return Ok(());
    }
    Err(LinkError::HashMismatch { what: format!("blob {expected}"), expected, found })
}

fn unexpected(expected: &'static str, reply: BulkReply) -> LinkError {
    match reply {
        BulkReply::Refused { reason } => LinkError::Refused { reason },
        other => LinkError::Unexpected { expected, found: format!("{other:?}") },
    }
}

fn finished(
    joined: Option<Result<Result<u64, LinkError>, tokio::task::JoinError>>,
) -> Result<u64, LinkError> {
    match joined {
        Some(Ok(result)) => result,
        Some(Err(error)) => Err(LinkError::Closed { reason: error.to_string() }),
        None => Ok(0),
    }
}
