//! What attempts print: one file each, appended by offset. Never a database write.
//!
//! `append` takes only what continues the file: repeated bytes are skipped, a gap is left for the agent to fill
//! (the answer tells how far the file reaches). So a resent chunk changes nothing.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use motley_scheduler_core::id::AttemptId;
use motley_scheduler_core::unit::Bytes;

use crate::HeadError;

/// A job that prints without end does not fill the scheduler's disk: beyond this nothing is kept.
const LOG_MAX: Bytes = Bytes(1 << 30);

const LIMIT_NOTE: &[u8] = b"\n[the log has reached 1 GiB; what follows is not kept]\n";

#[derive(Debug, Clone)]
pub(crate) struct Logs {
    folder: PathBuf,
}

impl Logs {
    pub(crate) fn open(folder: &Path) -> Result<Logs, HeadError> {
        std::fs::create_dir_all(folder).map_err(|error| HeadError::state(folder, error))?;
        Ok(Logs { folder: folder.to_owned() })
    }

    /// Continues a log; returns how far the agent need not send again. Blocks.
    pub(crate) fn append(&self, attempt: AttemptId, offset: u64, bytes: &[u8]) -> std::io::Result<u64> {
        let mut file = File::options().create(true).append(true).open(self.path(attempt))?;
        let length = file.metadata()?.len();
        let end = offset.saturating_add(bytes.len() as u64);
        if length >= LOG_MAX.0 {
            return Ok(end);
        }
        if offset > length || end <= length {
            return Ok(length);
        }
        let known = usize::try_from(length - offset).unwrap_or(usize::MAX).min(bytes.len());
        file.write_all(&bytes[known..])?;
        if end >= LOG_MAX.0 {
            file.write_all(LIMIT_NOTE)?;
        }
        Ok(end)
    }

    /// At most `limit` bytes from `offset` on; none where the log has not got there. Blocks.
    pub(crate) fn read(&self, attempt: AttemptId, offset: u64, limit: usize) -> std::io::Result<Vec<u8>> {
        let mut file = match File::open(self.path(attempt)) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        file.take(limit as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn path(&self, attempt: AttemptId) -> PathBuf {
        self.folder.join(format!("{attempt}.log"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use motley_scheduler_core::id::JobId;

    #[test]
    fn log_grows_by_what_continues_it() {
        let folder = tempfile::tempdir().unwrap();
        let logs = Logs::open(&folder.path().join("logs")).unwrap();
        let attempt = AttemptId { job: JobId(3), number: 2 };
        assert_eq!(logs.read(attempt, 0, 100).unwrap(), b"");
        for (offset, bytes, reaches) in [
            (0, "hello ", 6),
            (0, "hello ", 6),
            (3, "lo wor", 9),
            (20, "gap", 9),
            (9, "ld", 11),
            (2, "llo", 11),
            (11, "", 11),
            (u64::MAX, "x", 11),
        ] {
            assert_eq!(logs.append(attempt, offset, bytes.as_bytes()).unwrap(), reaches, "{offset} {bytes}");
        }
        assert_eq!(logs.read(attempt, 0, 100).unwrap(), b"hello world");
        assert_eq!(logs.read(attempt, 6, 3).unwrap(), b"wor");
        assert_eq!(logs.read(attempt, 100, 3).unwrap(), b"");
    }
}
