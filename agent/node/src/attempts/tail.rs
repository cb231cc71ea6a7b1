//! Reading files that somebody else appends to: events by line, logs by offset.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::runner::events::RunnerEvent;

/// Read at one look; the rest is read at the next.
const CHUNK_BYTES: usize = 64 << 10;

/// Events read at one look, so that a runner that floods its events holds up nothing but itself.
const CHUNKS_A_LOOK: usize = 16;

/// Longest line that is taken for an event.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Log bytes sent but not yet stored: what a scheduler with a slow disk has to hold.
const WINDOW_BYTES: u64 = 1 << 20;

/// The lines of `events.jsonl`, from the first on.
#[derive(Debug)]
pub(crate) struct EventTail {
    path: PathBuf,
    offset: u64,
    partial: Vec<u8>,
}

impl EventTail {
    pub(crate) fn new(path: PathBuf) -> Self {
        EventTail { path, offset: 0, partial: Vec::new() }
    }

    /// Whole lines that were written since the last call.
    pub(crate) fn read(&mut self) -> Vec<RunnerEvent> {
        let mut events = Vec::new();
        for _ in 0..CHUNKS_A_LOOK {
            let bytes = match read_at(&self.path, self.offset, CHUNK_BYTES) {
                Ok(bytes) if !bytes.is_empty() => bytes,
                _ => break,
            };
            self.offset += bytes.len() as u64;
            self.partial.extend_from_slice(&bytes);
            while let Some(end) = self.partial.iter().position(|&byte| byte == b'\n') {
                // A kind of event that this agent does not know is no reason to stop.
                events.extend(serde_json::from_slice::<RunnerEvent>(&self.partial[..end]));
                self.partial.drain(..=end);
            }
            if self.partial.len() > LINE_BYTES_MAX {
                self.partial.clear();
            }
        }
        events
    }
}

/// Which bytes of `output.log` were sent, and which are stored.
#[derive(Debug)]
pub(crate) struct LogTail {
    path: PathBuf,
    sent: u64,
    stored: u64,
}

impl LogTail {
    pub(crate) fn new(path: PathBuf) -> Self {
        LogTail { path, sent: 0, stored: 0 }
    }

    /// A new connection: what was not stored is sent again.
    pub(crate) fn rewind(&mut self) {
        self.sent = self.stored;
    }

    /// Bytes before `offset` are stored. Less than was known before means that they were lost there.
    pub(crate) fn stored(&mut self, offset: u64) {
        if offset < self.stored {
            self.sent = offset;
        }
        self.stored = offset;
        self.sent = self.sent.max(offset);
    }

    /// The next bytes to send with their offset; `None` when there are none now, or enough is under way.
    pub(crate) fn next(&self, chunk_bytes_max: usize) -> Option<(u64, Vec<u8>)> {
        if self.sent - self.stored >= WINDOW_BYTES {
            return None;
        }
        let bytes = read_at(&self.path, self.sent, chunk_bytes_max).ok()?;
        (!bytes.is_empty()).then_some((self.sent, bytes))
    }

    pub(crate) fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    /// Whether everything that is in the file now is stored.
    pub(crate) fn is_done(&self) -> bool {
        std::fs::metadata(&self.path).map_or(0, |metadata| metadata.len()) <= self.stored
    }
}

fn read_at(path: &Path, offset: u64, limit: usize) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.take(limit as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn events_are_read_by_whole_lines_and_unknown_ones_are_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let mut tail = EventTail::new(path.clone());
        assert_eq!(tail.read(), []);
        let mut file = File::create(&path).unwrap();
        file.write_all(b"{\"event\":\"from_the_future\",\"x\":1}\n{\"event\":\"check").unwrap();
        assert_eq!(tail.read(), []);
        file.write_all(
            b"point\",\"step\":4}\nnonsense\n{\"event\":\"endpoint\",\"endpoint\":\"http://a\"}\n",
        )
        .unwrap();
        let expected =
            [RunnerEvent::Checkpoint { step: 4 }, RunnerEvent::Endpoint { endpoint: "http://a".into() }];
        assert_eq!(tail.read(), expected);
        assert_eq!(tail.read(), []);
    }

    #[test]
    fn a_log_is_sent_once_and_again_from_what_is_stored_after_a_reconnect() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("output.log");
        std::fs::write(&path, b"0123456789").unwrap();
        let mut tail = LogTail::new(path.clone());
        assert_eq!(tail.next(4), Some((0, b"0123".to_vec())));
        tail.sent(4);
        assert_eq!(tail.next(100), Some((4, b"456789".to_vec())));
        tail.sent(6);
        assert_eq!(tail.next(100), None);
        tail.stored(4);
        assert!(!tail.is_done());
        tail.rewind();
        assert_eq!(tail.next(100), Some((4, b"456789".to_vec())));
        tail.sent(6);
        tail.stored(10);
        assert!(tail.is_done());
        // The other side lost its tail.
        tail.stored(7);
        assert_eq!(tail.next(100), Some((7, b"789".to_vec())));
        // A restarted agent finds that all is stored already.
        let mut fresh = LogTail::new(path);
        fresh.stored(10);
        assert_eq!(fresh.next(100), None);
    }

    #[test]
    fn no_more_than_a_window_is_under_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("output.log");
        std::fs::write(&path, vec![b'x'; 2 << 20]).unwrap();
        let mut tail = LogTail::new(path);
        let mut sent = 0;
        while let Some((offset, bytes)) = tail.next(64 << 10) {
            assert_eq!(offset, sent);
            tail.sent(bytes.len());
            sent += bytes.len() as u64;
        }
        assert_eq!(sent, WINDOW_BYTES);
    }
}
