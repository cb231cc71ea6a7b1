//! From this disk to the scheduler: a folder as a manifest and its blobs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use motley_scheduler_core::artifact::{ArtifactKind, ArtifactRef, FileEntry, Manifest};
use motley_scheduler_core::id::{AttemptId, ContentHash, Epoch};
use motley_scheduler_core::unit::Bytes;
use motley_scheduler_core::wire::bulk::HASHES_MAX;
use sha2::{Digest, Sha256};

use super::TransferError;
use crate::models::hash_file;
use crate::runner::files::write_bytes;
use crate::uplink::{BlobStore, LocalBlob, UplinkError};

/// Files of one artifact: an output has some dozens.
const FILES_MAX: usize = 100_000;

/// A folder to be stored, and what it is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Upload {
    pub(crate) folder: PathBuf,
    pub(crate) kind: ArtifactKind,
    pub(crate) attempt: AttemptId,
    pub(crate) epoch: Epoch,
    /// Where the manifest's own text is kept while it is sent.
    pub(crate) manifest: PathBuf,
}

/// Stores a folder: blobs first, manifest last. `None` when the folder holds no file.
pub(crate) async fn upload(
    upload: Upload,
    store: &dyn BlobStore,
) -> Result<Option<ArtifactRef>, TransferError> {
    let folder = upload.folder.clone();
    let hashing = tokio::task::spawn_blocking(move || list(&folder)).await;
    let files = hashing.map_err(|error| TransferError::Lost(error.to_string()))??;
    if files.is_empty() {
        return Ok(None);
    }
    let mut hashes: Vec<ContentHash> = files.iter().map(|entry| entry.hash).collect();
    hashes.sort_unstable();
    hashes.dedup();
    for some in hashes.chunks(HASHES_MAX) {
        for hash in missing(store, some.to_vec()).await? {
            // The scheduler answers with hashes of the question only; anything else is of no interest here.
            let Some(entry) = files.iter().find(|entry| entry.hash == hash) else { continue };
            let path = upload.folder.join(&entry.path);
            let sent = store.put(LocalBlob { hash, size: entry.size.0, path: path.clone() }).await;
            if !path.exists() {
                return Err(TransferError::Gone { path });
            }
            sent.map_err(TransferError::of_blob(hash))?;
        }
    }
    let Upload { kind, attempt, epoch, manifest: path, .. } = upload;
    let text = serde_json::to_vec(&Manifest { kind, attempt, epoch, files });
    let text = text.map_err(|error| TransferError::disk(&path)(io::Error::other(error)))?;
    let manifest = ContentHash(Sha256::digest(&text).into());
    write_bytes(&path, &text).map_err(TransferError::disk(&path))?;
    let blob = LocalBlob { hash: manifest, size: text.len() as u64, path };
    store.put(blob).await.map_err(TransferError::of_blob(manifest))?;
    Ok(Some(ArtifactRef { kind, manifest }))
}

async fn missing(store: &dyn BlobStore, hashes: Vec<ContentHash>) -> Result<Vec<ContentHash>, TransferError> {
    store.missing(hashes).await.map_err(|error| match error {
        UplinkError::Lost(message) => TransferError::Lost(message),
        UplinkError::Refused(reason) => TransferError::Refused { what: "blobs".into(), reason },
    })
}

/// Every file below `folder`, hashed, sorted by path. Names that begin with `.` are unfinished and left out.
fn list(folder: &Path) -> Result<Vec<FileEntry>, TransferError> {
    let mut files = Vec::new();
    collect(folder, "", &mut files)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn collect(folder: &Path, prefix: &str, files: &mut Vec<FileEntry>) -> Result<(), TransferError> {
    for entry in fs::read_dir(folder).map_err(gone_or_disk(folder))? {
        let entry = entry.map_err(gone_or_disk(folder))?;
        let path = entry.path();
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
        let relative = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
        let kind = entry.file_type().map_err(gone_or_disk(&path))?;
        if kind.is_dir() {
            collect(&path, &relative, files)?;
        } else if kind.is_file() {
            let size = entry.metadata().map_err(gone_or_disk(&path))?.len();
            let hash = hash_file(&path).map_err(gone_or_disk(&path))?;
            files.push(FileEntry { path: relative, hash, size: Bytes(size) });
        }
        if files.len() > FILES_MAX {
            let reason = format!("more than {FILES_MAX} files");
            return Err(TransferError::Refused { what: folder.display().to_string(), reason });
        }
    }
    Ok(())
}

fn gone_or_disk(path: &Path) -> impl FnOnce(io::Error) -> TransferError + '_ {
    move |error| match error.kind() {
        io::ErrorKind::NotFound => TransferError::Gone { path: path.to_path_buf() },
        _ => TransferError::disk(path)(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_listed_by_path_without_unfinished_files() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b/2.txt", "b/1.txt", "a.txt", ".partial-x/y.txt", "b/.partial-z"] {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        let files = list(folder.path()).unwrap();
        let paths: Vec<&str> = files.iter().map(|entry| entry.path.as_str()).collect();
        assert_eq!(paths, ["a.txt", "b/1.txt", "b/2.txt"]);
        assert_eq!(files[0].size, Bytes(5));
        assert_eq!(files[0].hash.0, <[u8; 32]>::from(Sha256::digest(b"a.txt")));
        assert!(matches!(list(&folder.path().join("absent")), Err(TransferError::Gone { .. })));
    }
}
