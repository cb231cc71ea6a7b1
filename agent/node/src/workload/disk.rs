//! Files that are whole or absent: written beside their place, synced, renamed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file or folder that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be written: {source}{}", path.display(), remedy(source))]
pub struct DiskError {
    pub path: PathBuf,
    pub source: io::Error,
}

fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            "\nhint: the disk is full; free some space there and run it again"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "\nhint: the folder must be writable"
        }
        _ => "",
    }
}

/// Adds the path to an I/O error.
pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> DiskError + '_ {
    move |source| DiskError { path: path.to_path_buf(), source }
}

/// Writes a whole file through a temporary neighbour; whoever reads the path sees the old or the new content.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("file");
    let temporary = path.with_file_name(format!(".partial-{name}"));
    let result = write_synced(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| sync_folder(path.parent().unwrap_or(Path::new("."))));
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result.map_err(at(path))
}

/// Writes files into `.partial-<name>` beside `folder`, syncs them, and renames. A folder that is there counts as
/// complete, and is replaced. Nothing half-written stays behind.
pub(crate) fn write_folder(folder: &Path, files: &[(&str, &[u8])]) -> Result<(), DiskError> {
    let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or("folder");
    let partial = folder.with_file_name(format!(".partial-{name}"));
    let result = fill_folder(&partial, files).and_then(|()| {
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        fs::rename(&partial, folder)?;
        sync_folder(folder.parent().unwrap_or(Path::new(".")))
    });
    if result.is_err() {
        let _ = fs::remove_dir_all(&partial);
    }
    result.map_err(at(folder))
}

fn fill_folder(partial: &Path, files: &[(&str, &[u8])]) -> io::Result<()> {
    if partial.exists() {
        fs::remove_dir_all(partial)?;
    }
    fs::create_dir_all(partial)?;
    for (name, bytes) in files {
        let path = partial.join(name);
        fs::create_dir_all(path.parent().unwrap_or(partial))?;
        write_synced(&path, bytes)?;
    }
    sync_folder(partial)
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// A rename is durable once its folder is.
fn sync_folder(folder: &Path) -> io::Result<()> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_appears_complete_and_replaces_an_older_one() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("step-20");
        for content in [b"one".as_slice(), b"two"] {
            write_folder(&folder, &[("a", content), ("b", b"")]).unwrap();
            assert_eq!(fs::read(folder.join("a")).unwrap(), content);
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_leaves_the_old_content_and_no_rest() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("report.json");
        write_atomically(&file, b"old").unwrap();
        let folder = root.path().join("step-20");
        // A file inside of a file cannot be created: stands for any failure after the first file.
        let error = write_folder(&folder, &[("a", b"x"), ("a/b", b"y")]).unwrap_err();
        assert!(error.to_string().contains("step-20 cannot be written"), "{error}");
        assert!(!folder.exists());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        assert_eq!(fs::read(&file).unwrap(), b"old");
    }

    #[test]
    fn a_full_disk_is_told_with_a_remedy() {
        // Writes to /dev/full fail as on a full disk.
        let Err(source) = write_synced(Path::new("/dev/full"), b"x") else { panic!("it has room") };
        let text = at(Path::new("checkpoints/step-20"))(source).to_string();
        assert!(text.contains("No space left") && text.contains("\nhint: the disk is full"), "{text}");
    }
}
