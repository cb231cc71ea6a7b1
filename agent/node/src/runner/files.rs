//! JSON files that are whole or absent: written beside their place, synced, renamed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest file read back: a spec carries a document, which is far smaller.
const JSON_BYTES_MAX: u64 = 64 << 20;

/// Replaces the file at `path`; only its owner may read it, since a spec can hold access tokens of model hubs.
///
/// # Errors
/// The disk is full, or the folder may not be written.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let bytes = serde_json::to_vec_pretty(value).map_err(io::Error::other)?;
    write_bytes(path, &bytes)
}

/// As [`write_json`], with the bytes given.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).ok_or(io::ErrorKind::InvalidInput)?;
    let partial = path.with_file_name(format!(".partial-{name}"));
    let write = || {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        sync_folder(path.parent().ok_or(io::ErrorKind::InvalidInput)?)
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&partial);
    })
}

/// `None` when there is no such file.
///
/// # Errors
/// The file cannot be read, or is not what it should be.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let size = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if size > JSON_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{size} bytes of JSON")));
    }
    let bytes = fs::read(path)?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// A rename lasts only once the folder is on disk.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
