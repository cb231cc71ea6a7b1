//! One scheduler a state folder: a file lock that the kernel frees when the process ends, however it ends.

use std::fs::{File, TryLockError};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use crate::HeadError;

/// Two seconds: longer than a commit on a slow disk.
const RETRIES: u32 = 20;
const RETRY_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(crate) struct FolderLock {
    /// Holds the lock until dropped.
    _file: File,
}

impl FolderLock {
    /// The same for a start right after an end: the writer of the scheduler before may still have a commit in hand.
    pub(crate) async fn take_soon(folder: &Path) -> Result<FolderLock, HeadError> {
        for _ in 0..RETRIES {
            match FolderLock::take(folder) {
                Err(HeadError::InUse { .. }) => tokio::time::sleep(RETRY_PAUSE).await,
                result => return result,
            }
        }
        FolderLock::take(folder)
    }

    /// Makes the folder if it is missing, for its owner alone (it holds the authority's key), and locks it.
    pub(crate) fn take(folder: &Path) -> Result<FolderLock, HeadError> {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|error| HeadError::state(folder, error))?;
        let path = folder.join("lock");
        let mut options = File::options();
        let file = options
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|error| HeadError::state(&path, error))?;
        match file.try_lock() {
            Ok(()) => Ok(FolderLock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(HeadError::InUse { path: folder.to_owned() }),
            Err(TryLockError::Error(error)) => Err(HeadError::state(&path, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_lock_is_refused_until_the_first_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("new/state");
        let first = FolderLock::take(&state).unwrap();
        assert!(matches!(FolderLock::take(&state), Err(HeadError::InUse { .. })));
        drop(first);
        FolderLock::take(&state).unwrap();
    }

    #[test]
    fn new_state_folder_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let _lock = FolderLock::take(&state).unwrap();
        assert_eq!(std::fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn folder_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = FolderLock::take(&file.join("state")).unwrap_err().to_string();
        assert!(error.contains("file/state") && error.contains("hint:"), "{error}");
    }
}
