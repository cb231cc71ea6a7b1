//! Raw bytes behind a message: hashed on the way, in chunks, with QUIC's back-pressure.

use std::path::Path;
use std::time::Duration;

use bytes::{Bytes as Chunk, BytesMut};
use motley_scheduler_core::id::ContentHash;
use motley_scheduler_core::unit::Bytes;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::channel::{read_failed, write_failed};
use crate::settings::STALL_SECONDS;
use crate::{LinkError, Receiver, Sender};

/// Large enough that the price of a system call is lost in it, small enough to keep many streams in memory.
const CHUNK: usize = 1 << 20;

impl Sender {
    /// Sends exactly `size` bytes of `reader`, and returns their hash.
    ///
    /// # Errors
    /// The reader fails or ends early, the peer stops reading, or takes nothing for half a minute.
    pub async fn send_raw<R: AsyncRead + Unpin>(
        &mut self,
        reader: &mut R,
        size: Bytes,
    ) -> Result<ContentHash, LinkError> {
        let mut hash = Sha256::new();
        let mut sent = 0;
        while sent < size.0 {
            let want = (size.0 - sent).min(CHUNK as u64) as usize;
            let mut buffer = BytesMut::with_capacity(want);
            while buffer.len() < want {
                let read = (&mut *reader).take((want - buffer.len()) as u64).read_buf(&mut buffer).await;
                let count = read.map_err(|error| LinkError::file(Path::new("(source)"), error))?;
                if count == 0 {
                    return Err(LinkError::Truncated {
                        received: sent + buffer.len() as u64,
                        expected: size.0,
                    });
                }
            }
            hash.update(&buffer);
            sent += want as u64;
            self.send_chunk(buffer.freeze()).await?;
        }
        Ok(ContentHash(hash.finalize().into()))
    }

    /// Sends a piece of raw bytes; returns when the connection's window has room for it.
    ///
    /// # Errors
    /// The peer stops reading, or takes nothing for half a minute.
    pub async fn send_chunk(&mut self, chunk: Chunk) -> Result<(), LinkError> {
        let limit = Duration::from_secs(STALL_SECONDS);
        match tokio::time::timeout(limit, self.stream.write_chunk(chunk)).await {
            Ok(result) => result.map_err(write_failed),
            Err(_) => Err(LinkError::Timeout { what: "room for more bytes", seconds: STALL_SECONDS }),
        }
    }
}

impl Receiver {
    /// Writes the next `size` bytes to `writer`, and returns their hash. The writer is flushed, not synchronized.
    ///
    /// # Errors
    /// The writer fails; the stream ends early, or brings nothing for half a minute.
    pub async fn receive_raw<W: AsyncWrite + Unpin>(
        &mut self,
        writer: &mut W,
        size: Bytes,
    ) -> Result<ContentHash, LinkError> {
        let mut hash = Sha256::new();
        let mut received = 0;
        while received < size.0 {
            let want = (size.0 - received).min(CHUNK as u64) as usize;
            let Some(chunk) = self.receive_chunk(want).await? else {
                return Err(LinkError::Truncated { received, expected: size.0 });
            };
            hash.update(&chunk);
            received += chunk.len() as u64;
            writer.write_all(&chunk).await.map_err(|error| LinkError::file(Path::new("(target)"), error))?;
        }
        writer.flush().await.map_err(|error| LinkError::file(Path::new("(target)"), error))?;
        Ok(ContentHash(hash.finalize().into()))
    }

    /// At most `limit` raw bytes, as they come; `None` at the end of the stream.
    ///
    /// # Errors
    /// The connection is gone, or brings nothing for half a minute.
    pub async fn receive_chunk(&mut self, limit: usize) -> Result<Option<Chunk>, LinkError> {
        let patience = Duration::from_secs(STALL_SECONDS);
        match tokio::time::timeout(patience, self.stream.read_chunk(limit, true)).await {
            Ok(Ok(chunk)) => Ok(chunk.map(|chunk| chunk.bytes)),
            Ok(Err(error)) => Err(read_failed(error)),
            Err(_) => Err(LinkError::Timeout { what: "more bytes", seconds: STALL_SECONDS }),
        }
    }
}

/// SHA-256 and size of a file. Blocks: for a thread of its own.
///
/// # Errors
/// The file cannot be read.
pub fn hash_file(path: &Path) -> Result<(ContentHash, Bytes), LinkError> {
    let error = |error| LinkError::file(path, error);
    let mut file = std::fs::File::open(path).map_err(error)?;
    let mut hash = Sha256::new();
    let mut size = 0;
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = std::io::Read::read(&mut file, &mut buffer).map_err(error)?;
        if count == 0 {
            return Ok((ContentHash(hash.finalize().into()), Bytes(size)));
        }
        hash.update(&buffer[..count]);
        size += count as u64;
    }
}
