//! Blobs and manifests between the scheduler and this disk.
//!
//! ```text
//! <state>/blobs/<first two digits>/<sha256>    fetched blobs, read-only, checked before they have this name
//! ```
//!
//! Up: every blob of a manifest, then the manifest. Whoever reads a manifest can read all of it.

pub(crate) mod download;
pub(crate) mod upload;

use std::io;
use std::path::{Component, Path, PathBuf};

use motley_scheduler_core::id::ContentHash;
use motley_scheduler_core::unit::Bytes;

use crate::uplink::UplinkError;

/// A transfer that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    /// Worth trying again when there is a connection.
    #[error("connection lost: {0}")]
    Lost(String),
    #[error("the scheduler cannot give or take {what}: {reason}")]
    Refused { what: String, reason: String },
    #[error("{}: {source}{}", path.display(), disk_hint(source))]
    Disk { path: PathBuf, source: io::Error },
    #[error(
        "{} has {free} free, this attempt needs {needed}\nhint: free some space on that disk, or give the agent another --state folder", path.display()
    )]
    DiskFull { path: PathBuf, free: Bytes, needed: Bytes },
    #[error("manifest {hash} cannot be used: {reason}")]
    Manifest { hash: ContentHash, reason: String },
    #[error("`{path}` is no path inside of a job's folder")]
    UnsafePath { path: String },
    /// The folder went away while it was read: somebody removed it on purpose.
    #[error("{} is gone", path.display())]
    Gone { path: PathBuf },
}

impl TransferError {
    pub(crate) fn disk(path: &Path) -> impl FnOnce(io::Error) -> TransferError + '_ {
        move |source| TransferError::Disk { path: path.to_path_buf(), source }
    }

    pub(crate) fn of_blob(hash: ContentHash) -> impl FnOnce(UplinkError) -> TransferError {
        move |error| match error {
            UplinkError::Lost(message) => TransferError::Lost(message),
            UplinkError::Refused(reason) => TransferError::Refused { what: format!("blob {hash}"), reason },
        }
    }
}

/// The remedy, where there is one.
pub(crate) fn disk_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "\nhint: the disk is full; free some space, or give the agent another --state folder"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "\nhint: the agent must be able to write there"
        }
        _ => "",
    }
}

/// `path` below `folder`, if it stays there.
pub(crate) fn place_in(folder: &Path, path: &str) -> Result<PathBuf, TransferError> {
    let relative = Path::new(path);
    let plain = |component: Component<'_>| matches!(component, Component::Normal(_));
    if path.is_empty() || path.contains('\0') || path.contains('\\') || !relative.components().all(plain) {
        return Err(TransferError::UnsafePath { path: path.to_owned() });
    }
    Ok(folder.join(relative))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_manifests_stay_in_their_folder() {
        let folder = Path::new("/state/input");
        for good in ["a", "a/b.jsonl", "data.train/x y.jsonl"] {
            assert_eq!(place_in(folder, good).unwrap(), folder.join(good));
        }
        for bad in ["", "..", "../a", "/etc/passwd", "a/../../b", "./a", "a\\b", "a\0b"] {
            assert!(matches!(place_in(folder, bad), Err(TransferError::UnsafePath { .. })), "{bad:?}");
        }
    }
}
