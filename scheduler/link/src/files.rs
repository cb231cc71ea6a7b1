//! Small private files: written whole or not at all, readable by their owner only.

use std::fs;
use std::io::Write;
use std::path::Path;

use crate::LinkError;

/// Replaces `path` by `bytes`: a temporary file beside it, flushed to disk, then renamed.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), LinkError> {
    let temporary = path.with_extension(format!("partial-{}", std::process::id()));
    let result = (|| {
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    result.map_err(|error| {
        let _ = fs::remove_file(&temporary);
        LinkError::file(path, error)
    })
}

/// A folder that only its owner may enter.
pub(crate) fn create_private_folder(folder: &Path) -> Result<(), LinkError> {
    fs::create_dir_all(folder).map_err(|error| LinkError::file(folder, error))?;
    #[cfg(unix)]
    {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(folder, mode).map_err(|error| LinkError::file(folder, error))?;
    }
    Ok(())
}
