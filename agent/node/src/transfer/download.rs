//! From the scheduler to this disk: a cache of blobs, and the folders of an attempt made of it.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use motley_scheduler_core::artifact::{FileEntry, Manifest};
use motley_scheduler_core::id::ContentHash;
use motley_scheduler_core::unit::Bytes;
use motley_scheduler_core::wire::agent::Assignment;
use tokio::sync::Mutex;

use super::{TransferError, place_in};
use crate::uplink::BlobStore;

/// Left free on the disk: logs and a first checkpoint must fit, or the job fails later for sure.
const DISK_RESERVE: u64 = 64 << 20;

/// A manifest lists at most a few thousand files of some hundred bytes each.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;

/// Blobs that no attempt links to are kept this long for the next job that names them.
const BLOB_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Fetched blobs, by content.
#[derive(Debug)]
pub(crate) struct BlobCache {
    folder: PathBuf,
    /// One fetch at a time: two attempts may want the same blob, and the line is the same for both.
    fetching: Mutex<()>,
}

impl BlobCache {
    /// Opens the cache and drops what nobody has used for a week.
    pub(crate) fn open(folder: PathBuf) -> Result<Self, TransferError> {
        fs::create_dir_all(&folder).map_err(TransferError::disk(&folder))?;
        sweep(&folder, SystemTime::now());
        Ok(BlobCache { folder, fetching: Mutex::new(()) })
    }

    fn path(&self, hash: ContentHash) -> PathBuf {
        let name = hash.to_string();
        self.folder.join(&name[..2]).join(name)
    }

    /// The blob's file, fetched if it is not there.
    pub(crate) async fn fetch(
        &self,
        store: &dyn BlobStore,
        hash: ContentHash,
    ) -> Result<PathBuf, TransferError> {
        let path = self.path(hash);
        let _one = self.fetching.lock().await;
        if path.is_file() {
            return Ok(path);
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(TransferError::disk(folder))?;
        }
        store.get(hash, &path).await.map_err(TransferError::of_blob(hash))?;
        // Attempts link to it: nobody may write through such a link.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).map_err(TransferError::disk(&path))?;
        Ok(path)
    }

    async fn manifest(&self, store: &dyn BlobStore, hash: ContentHash) -> Result<Manifest, TransferError> {
        let path = self.fetch(store, hash).await?;
        let error = |reason: String| TransferError::Manifest { hash, reason };
        let size = fs::metadata(&path).map_err(TransferError::disk(&path))?.len();
        if size > MANIFEST_BYTES_MAX {
            return Err(error(format!("{size} bytes are no manifest")));
        }
        let bytes = fs::read(&path).map_err(TransferError::disk(&path))?;
        serde_json::from_slice(&bytes).map_err(|e| error(e.to_string()))
    }

    /// Makes `folder` of `files`; it appears whole or not at all.
    async fn lay_out(
        &self,
        store: &dyn BlobStore,
        files: &[FileEntry],
        folder: &Path,
    ) -> Result<(), TransferError> {
        if folder.is_dir() {
            return Ok(());
        }
        let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or("folder");
        let partial = folder.with_file_name(format!(".partial-{name}"));
        remove(&partial)?;
        fs::create_dir_all(&partial).map_err(TransferError::disk(&partial))?;
        for entry in files {
            let target = place_in(&partial, &entry.path)?;
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent).map_err(TransferError::disk(parent))?;
            }
            let blob = self.fetch(store, entry.hash).await?;
            link_or_copy(&blob, &target).map_err(TransferError::disk(&target))?;
        }
        fs::rename(&partial, folder).map_err(TransferError::disk(folder))
    }
}

/// Fetches everything that an attempt needs and lays out its folder. Called again after a failure, it goes on where
/// it stopped.
pub(crate) async fn prepare(
    attempt: &Path,
    assignment: &Assignment,
    cache: &BlobCache,
    store: &dyn BlobStore,
) -> Result<(), TransferError> {
    let mut folders = vec![(attempt.join("input"), assignment.files.clone())];
    for (job, manifest) in &assignment.inputs {
        let folder = attempt.join("inputs").join(format!("job-{job}"));
        folders.push((folder, cache.manifest(store, *manifest).await?.files));
    }
    if let Some(checkpoint) = &assignment.resume {
        let files = cache.manifest(store, checkpoint.manifest).await?.files;
        folders.push((attempt.join("resume"), files));
    }
    let absent =
        folders.iter().flat_map(|(_, files)| files).filter(|entry| !cache.path(entry.hash).is_file());
    let needed = absent.map(|entry| entry.size.0).fold(0, u64::saturating_add);
    check_space(attempt, needed)?;
    for (folder, files) in &folders {
        if let Some(parent) = folder.parent() {
            fs::create_dir_all(parent).map_err(TransferError::disk(parent))?;
        }
        cache.lay_out(store, files, folder).await?;
    }
    Ok(())
}

/// Free space on the disk of `path`.
pub(crate) fn free_space(path: &Path) -> io::Result<Bytes> {
    let stat = nix::sys::statvfs::statvfs(path)?;
    Ok(Bytes(stat.blocks_available().saturating_mul(stat.fragment_size())))
}

fn check_space(path: &Path, needed: u64) -> Result<(), TransferError> {
    let needed = Bytes(needed.saturating_add(DISK_RESERVE));
    let free = free_space(path).map_err(TransferError::disk(path))?;
    if free < needed {
        return Err(TransferError::DiskFull { path: path.to_path_buf(), free, needed });
    }
    Ok(())
}

/// A hard link costs nothing; where the disk has none (or the folders lie on two disks) a copy does.
fn link_or_copy(blob: &Path, target: &Path) -> io::Result<()> {
    if fs::hard_link(blob, target).is_ok() {
        return Ok(());
    }
    fs::copy(blob, target).map(|_| ())
}

fn remove(folder: &Path) -> Result<(), TransferError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(TransferError::disk(folder)(error)),
        _ => Ok(()),
    }
}

/// Removes old blobs with no other link to them.
fn sweep(folder: &Path, now: SystemTime) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            sweep(&entry.path(), now);
            continue;
        }
        let age = metadata.modified().ok().and_then(|at| now.duration_since(at).ok());
        if metadata.nlink() == 1 && age.is_some_and(|age| age > BLOB_LIFE) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
