//! `control.sock`: what an agent tells a runner. One connection a command, one JSON line each way.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use motley_scheduler_core::unit::Span;
use serde::{Deserialize, Serialize};

/// Longest line: a command is below 100 bytes.
const LINE_BYTES_MAX: u64 = 4096;

/// Whoever connects and says nothing may not hold up the next.
const PATIENCE: Duration = Duration::from_secs(1);

const NAME: &str = "control.sock";

/// From agent to runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub(crate) enum ControlCommand {
    /// The lease runs for `lease` from now.
    Lease { lease: Span, keep_running: Span },
    /// Write what you have and end.
    Stop,
}

/// Opens the socket. A left-over of an earlier runner is replaced.
///
/// # Errors
/// The socket cannot be made in the folder.
pub(crate) fn listen(folder: &Path) -> io::Result<UnixListener> {
    let handle = File::open(folder)?;
    let path = short_path(&handle);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(&path),
    }
}

/// Hands every command to `apply`, for ever.
pub(crate) fn obey(listener: &UnixListener, apply: impl Fn(ControlCommand)) {
    for stream in listener.incoming() {
        let result = stream.and_then(|stream| answer(stream, &apply));
        if let Err(error) = result {
            tracing::debug!(%error, "control connection failed");
            // An accept that fails for want of file descriptors fails again at once.
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn answer(mut stream: UnixStream, apply: &impl Fn(ControlCommand)) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(&stream).take(LINE_BYTES_MAX).read_line(&mut line)?;
    let command = serde_json::from_str(&line).map_err(io::Error::other)?;
    apply(command);
    stream.write_all(b"ok\n")
}

/// Says `command` to the runner of that attempt folder and waits until it has taken note.
///
/// # Errors
/// Nobody listens, or does not answer within a second.
pub(crate) fn tell(folder: &Path, command: ControlCommand) -> io::Result<()> {
    let handle = File::open(folder)?;
    let mut stream = UnixStream::connect(short_path(&handle))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(&command).map_err(io::Error::other)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut reply = String::new();
    BufReader::new(&stream).take(LINE_BYTES_MAX).read_line(&mut reply)?;
    if reply == "ok\n" { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// A socket's path has at most 107 bytes, a state folder's path may be longer: go through the open folder.
fn short_path(folder: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{NAME}", folder.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn commands_arrive_in_folders_with_long_names_and_nonsense_is_passed_over() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("x".repeat(120)).join("y".repeat(120));
        std::fs::create_dir_all(&folder).unwrap();
        assert!(tell(&folder, ControlCommand::Stop).is_err(), "nobody listens yet");
        let listener = listen(&folder).unwrap();
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || obey(&listener, |command| sender.send(command).unwrap()));
        let handle = File::open(&folder).unwrap();
        UnixStream::connect(short_path(&handle)).unwrap().write_all(b"nonsense\n").unwrap();
        let lease =
            ControlCommand::Lease { lease: Span::from_seconds(30), keep_running: Span::from_seconds(600) };
        tell(&folder, lease).unwrap();
        tell(&folder, ControlCommand::Stop).unwrap();
        assert_eq!(receiver.recv().unwrap(), lease);
        assert_eq!(receiver.recv().unwrap(), ControlCommand::Stop);
    }
}
