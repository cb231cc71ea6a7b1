//! The process that cleans up after `ctl run`, however that ended.
//!
//! ```text
//! ctl run ──pipe──▶ ctl sweeper FOLDER [RESERVED...]   waits for the end of the pipe: the other side is gone
//!                     ends what attempts/*/pid.json names with all that it started, then removes FOLDER (unless the
//!                     pipe said to keep it) and the folders that were reserved for results and stayed empty
//! ```
//!
//! It stands in a process group of its own, so that Ctrl-C in the terminal does not reach it. A runner is told apart
//! from a stranger with the same number by its start time.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::arguments::SweeperArguments;
use crate::failure::Failure;

/// How long a killed runner may take to vanish, and the folder to become empty.
const SWEEP_TIME: Duration = Duration::from_secs(10);
/// On the pipe: the store holds the only copy of the results.
const KEEP: &[u8] = b"keep";
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// The running sweeper.
pub(super) struct Sweeper {
    child: Child,
}

impl Sweeper {
    pub(super) fn start(folder: &Path, reserved: &[PathBuf]) -> Result<Sweeper, Failure> {
        let failed = |error| Failure::failed(format!("cannot start the sweeper: {error}"));
        let program = std::env::current_exe().map_err(failed)?;
        let mut command = Command::new(program);
        command.arg("sweeper").arg(folder).args(reserved);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        #[cfg(unix)]
        command.process_group(0);
        Ok(Sweeper { child: command.spawn().map_err(failed)? })
    }

    /// As [`Sweeper::sweep`], but the folder stays.
    pub(super) async fn sweep_keeping(mut self) {
        if let Some(stdin) = &mut self.child.stdin
            && let Err(error) = stdin.write_all(KEEP).await
        {
            tracing::debug!(%error, "the sweeper is gone");
        }
        self.sweep().await;
    }

    /// Closes the pipe and waits until the folder is gone.
    pub(super) async fn sweep(mut self) {
        drop(self.child.stdin.take());
        let mut end = Vec::new();
        if let Some(mut stdout) = self.child.stdout.take()
            && let Err(error) = stdout.read_to_end(&mut end).await
        {
            tracing::debug!(%error, "no word from the sweeper");
        }
        if let Err(error) = self.child.wait().await {
            tracing::debug!(%error, "no end of the sweeper");
        }
    }
}

/// The hidden command: waits for the end of stdin, then sweeps.
pub fn main(arguments: &SweeperArguments) -> Result<(), Failure> {
    let mut order = Vec::new();
    if let Err(error) = std::io::stdin().lock().read_to_end(&mut order) {
        tracing::debug!(%error, "stdin broke");
    }
    let swept = match order == KEEP {
        true => {
            end_runners(&arguments.folder);
            Ok(())
        }
        false => sweep(&arguments.folder),
    };
    remove_empty(&arguments.reserved);
    swept
}

/// Innermost first. Whatever holds something stays.
pub(super) fn remove_empty(folders: &[PathBuf]) {
    for folder in folders {
        if let Err(error) = std::fs::remove_dir(folder) {
            tracing::debug!(folder = %folder.display(), %error, "folder stays");
        }
    }
}

fn end_runners(folder: &Path) {
    for (pid, start_time) in runners(folder) {
        end_process(pid, start_time);
    }
}

fn sweep(folder: &Path) -> Result<(), Failure> {
    // A runner that notices the end itself renames the folder before it removes it, and may be ended by us meanwhile.
    let names = [folder.to_path_buf(), folder.with_extension("ended")];
    let deadline = Instant::now() + SWEEP_TIME;
    while let Err(error) = names.iter().try_for_each(|folder| sweep_once(folder)) {
        if Instant::now() >= deadline {
            return Err(Failure::failed(format!("{} stays: {error}", folder.display())));
        }
        // Somebody was still writing.
        std::thread::sleep(RETRY_INTERVAL);
    }
    Ok(())
}

fn sweep_once(folder: &Path) -> std::io::Result<()> {
    end_runners(folder);
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        // Gone under this name; whoever renamed it between the two looks is found at the next.
        _ if folder.exists() => Err(std::io::ErrorKind::DirectoryNotEmpty.into()),
        _ => Ok(()),
    }
}

/// Process numbers and start times of the attempts below the folder.
fn runners(folder: &Path) -> Vec<(i32, u64)> {
    let attempts = folder.join("agent").join("attempts");
    let Ok(entries) = std::fs::read_dir(attempts) else { return Vec::new() };
    entries.flatten().filter_map(|entry| runner(entry.path().join("pid.json"))).collect()
}

fn runner(path: PathBuf) -> Option<(i32, u64)> {
    let value: Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    Some((i32::try_from(value["pid"].as_i64()?).ok()?, value["start_time"].as_u64()?))
}

/// Ends a runner and what it started, such as pip: a runner leads a process group. One that has just begun does not
/// yet, and has started nothing.
#[cfg(unix)]
fn end_process(pid: i32, start_time: u64) {
    use rustix::process::{Pid, Signal, kill_process, kill_process_group};
    if start_time_of(pid) != Some(start_time) {
        return;
    }
    let Some(pid) = Pid::from_raw(pid) else { return };
    if kill_process_group(pid, Signal::KILL).is_err()
        && let Err(error) = kill_process(pid, Signal::KILL)
    {
        tracing::debug!(%error, "the runner was gone already");
    }
}

#[cfg(not(unix))]
fn end_process(_pid: i32, _start_time: u64) {}

/// Field 22 of `/proc/<pid>/stat`; the name in field 2 may hold spaces and ends at the last parenthesis.
#[cfg(unix)]
fn start_time_of(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest = &stat[stat.rfind(')')? + 1..];
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_runner_is_ended_and_a_stranger_with_its_number_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let attempt = folder.path().join("agent/attempts/1.1");
        std::fs::create_dir_all(&attempt).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let start_time = start_time_of(child.id() as i32).unwrap();
        let write = |start_time: u64| {
            let text = format!("{{\"pid\": {}, \"start_time\": {start_time}}}", child.id());
            std::fs::write(attempt.join("pid.json"), text).unwrap();
        };
        write(start_time + 1);
        assert_eq!(runners(folder.path()), [(child.id() as i32, start_time + 1)]);
        end_process(child.id() as i32, start_time + 1);
        std::thread::sleep(Duration::from_millis(50));
        write(start_time);
        let still_there = child.try_wait().unwrap().is_none();
        let kept = folder.keep();
        sweep(&kept).unwrap();
        assert!(still_there);
        assert!(!child.wait().unwrap().success());
        assert!(!kept.exists());
    }
}
