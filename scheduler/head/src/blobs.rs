//! Files by content in an object store: a local folder by default.
//!
//! ```text
//! blobs/ab/cdef…       SHA-256 of the contents, in two parts
//! blobs/ab/cdef…#1     an upload under way; whatever a crash left is removed at start
//! blobs/corrupt/abcd…  contents that no longer fit their name: set aside, and missing to everybody
//! ```
//!
//! A blob appears under its name only when its bytes were hashed and flushed. Nothing is overwritten in place.

use std::path::Path as Folder;
use std::sync::Arc;

use bytes::{Bytes as Chunk, BytesMut};
use motley_scheduler_core::id::ContentHash;
use motley_scheduler_core::unit::Bytes;
use motley_scheduler_link::{CloseCode, LinkError, Receiver, Sender};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload};
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;

use crate::HeadError;

/// Read and written at once: large enough for any store, and a few of them per transfer fit into memory.
const PART: usize = 4 << 20;

#[derive(Debug, Clone)]
pub(crate) struct Blobs {
    store: Arc<dyn ObjectStore>,
}

/// Why a blob was not stored or delivered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BlobError {
    #[error("cannot store or read blobs: {source}\nhint: has the scheduler's disk room?")]
    Store { source: object_store::Error },
    #[error("the contents sent are {found}, not {expected}")]
    OtherContents { expected: ContentHash, found: ContentHash },
    #[error("blob {hash} has {size} bytes; none from {offset} on")]
    Offset { hash: ContentHash, size: u64, offset: u64 },
    #[error("blob {hash} is damaged on the scheduler's disk and was set aside\nhint: upload it again")]
    Damaged { hash: ContentHash },
    #[error(transparent)]
    Link(#[from] LinkError),
}

impl From<object_store::Error> for BlobError {
    fn from(source: object_store::Error) -> Self {
        BlobError::Store { source }
    }
}

impl Blobs {
    /// Opens a local store, and removes what unfinished uploads left.
    pub(crate) fn open(folder: &Folder) -> Result<Blobs, HeadError> {
        let error = |error| HeadError::state(folder, error);
        std::fs::create_dir_all(folder).map_err(error)?;
        remove_partial(folder).map_err(error)?;
        let store = LocalFileSystem::new_with_prefix(folder)
            .map_err(|failure| error(std::io::Error::other(failure)))?
            .with_fsync(true);
        Ok(Blobs { store: Arc::new(store) })
    }

    /// The size of a stored blob.
    pub(crate) async fn size(&self, hash: ContentHash) -> Result<Option<u64>, BlobError> {
        match self.store.head(&path(hash)).await {
            Ok(found) => Ok(Some(found.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Those of `hashes` that are not stored.
    pub(crate) async fn missing(&self, hashes: &[ContentHash]) -> Result<Vec<ContentHash>, BlobError> {
        let mut missing = Vec::new();
        for hash in hashes {
            if self.size(*hash).await?.is_none() {
                missing.push(*hash);
            }
        }
        Ok(missing)
    }

    /// Stores `size` raw bytes that follow on a stream, if they are what they are said to be.
    pub(crate) async fn put(
        &self,
        hash: ContentHash,
        size: Bytes,
        receiver: &mut Receiver,
    ) -> Result<(), BlobError> {
        if self.size(hash).await?.is_some() {
            receiver.stop(CloseCode::Done);
            return Ok(());
        }
        let mut upload = self.store.put_multipart(&path(hash)).await?;
        match copy_in(&mut upload, size, receiver).await {
            Ok(found) if found == hash => {
                upload.complete().await?;
                tracing::info!(%hash, bytes = size.0, "blob stored");
                Ok(())
            }
            result => {
                receiver.stop(CloseCode::Failed);
                // A failed removal leaves a file that the next start removes.
                let _ = upload.abort().await;
                Err(result
                    .map_or_else(|error| error, |found| BlobError::OtherContents { expected: hash, found }))
            }
        }
    }

    /// Sends the raw bytes of a stored blob of `size` from `offset` on; the receiver's word is already given, so a
    /// blob that turns out damaged breaks the stream off.
    pub(crate) async fn get(
        &self,
        hash: ContentHash,
        (offset, size): (u64, u64),
        sender: &mut Sender,
    ) -> Result<(), BlobError> {
        if offset > size {
            return Err(BlobError::Offset { hash, size, offset });
        }
        let mut hasher = Sha256::new();
        let mut position = offset;
        let mut next = self.read_ahead(hash, position, size);
        while position < size {
            let part = match next.await {
                Ok(part) => part?,
                Err(error) => return Err(object_store::Error::from(error).into()),
            };
            position += part.len() as u64;
            next = self.read_ahead(hash, position, size);
            hasher.update(&part);
            sender.send_chunk(part).await?;
        }
        let found = ContentHash(hasher.finalize().into());
        if offset == 0 && found != hash {
            sender.abort(CloseCode::Failed);
            tracing::error!(%hash, %found, "blob is damaged: set aside");
            self.store.rename(&path(hash), &Path::from(format!("corrupt/{hash}"))).await?;
            return Err(BlobError::Damaged { hash });
        }
        Ok(())
    }

    /// Reads the part at `position` while the one before is on its way.
    fn read_ahead(
        &self,
        hash: ContentHash,
        position: u64,
        size: u64,
    ) -> JoinHandle<Result<Chunk, object_store::Error>> {
        let store = self.store.clone();
        tokio::spawn(async move {
            let end = size.min(position + PART as u64);
            if position >= end {
                return Ok(Chunk::new());
            }
            store.get_range(&path(hash), position..end).await
        })
    }
}

/// Where a blob lies: 256 folders keep each of them short.
fn path(hash: ContentHash) -> Path {
    let name = hash.to_string();
    Path::from(format!("{}/{}", &name[..2], &name[2..]))
}

/// Receives, hashes and writes; one part is written while the next is received.
async fn copy_in(
    upload: &mut Box<dyn MultipartUpload>,
    size: Bytes,
    receiver: &mut Receiver,
) -> Result<ContentHash, BlobError> {
    let mut hash = Sha256::new();
    let mut received = 0;
    // Packets are small: a part is one piece of memory, so that it is one write.
    let mut part = BytesMut::new();
    let mut writing: Option<JoinHandle<Result<(), object_store::Error>>> = None;
    while received < size.0 {
        let room = PART - part.len();
        let want = (size.0 - received).min(room as u64) as usize;
        let Some(chunk) = receiver.receive_chunk(want).await? else {
            return Err(LinkError::Truncated { received, expected: size.0 }.into());
        };
        if part.is_empty() {
            part.reserve(usize::try_from(size.0 - received).map_or(PART, |rest| rest.min(PART)));
        }
        part.extend_from_slice(&chunk);
        received += chunk.len() as u64;
        if part.len() >= PART {
            hash.update(&part);
            written(writing.take()).await?;
            let payload = PutPayload::from(part.split().freeze());
            writing = Some(tokio::spawn(upload.put_part(payload)));
        }
    }
    written(writing).await?;
    if !part.is_empty() {
        hash.update(&part);
        upload.put_part(PutPayload::from(part.freeze())).await?;
    }
    Ok(ContentHash(hash.finalize().into()))
}

async fn written(writing: Option<JoinHandle<Result<(), object_store::Error>>>) -> Result<(), BlobError> {
    match writing {
        None => Ok(()),
        Some(task) => match task.await {
            Ok(result) => Ok(result?),
            Err(error) => Err(object_store::Error::from(error).into()),
        },
    }
}

/// Staged uploads end in `#` and a number.
fn remove_partial(folder: &Folder) -> std::io::Result<()> {
    for sub in std::fs::read_dir(folder)? {
        let sub = sub?;
        if !sub.file_type()?.is_dir() {
            continue;
        }
        for file in std::fs::read_dir(sub.path())? {
            let file = file?;
            if file.file_name().to_string_lossy().contains('#') {
                std::fs::remove_file(file.path())?;
            }
        }
    }
    Ok(())
}
