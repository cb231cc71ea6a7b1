//! A runner as the agent sees it: started, or found again; alive or gone; stopped step by step.

use std::fs::File;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::folder::AttemptFolder;
use crate::runner::process::{NONCE_VARIABLE, ProcessIdentity};
use crate::settings::RunnerCommand;

/// A runner that holds its lock but has not yet written who it is, writes it within this time or never.
const BIRTH: Duration = Duration::from_secs(10);

/// How willing the kernel is to end the runner before others when memory runs out (-1000 to 1000): before the agent,
/// which has to tell the tale.
const OOM_SCORE: &str = "500";

/// A runner process.
#[derive(Debug)]
pub(crate) enum RunnerProcess {
    /// Started by this agent: its exit status will be known.
    Own(Child),
    /// Started by an earlier agent, found by `pid.json`.
    Adopted(ProcessIdentity),
    /// Started by an earlier agent a moment before that ended.
    Unborn { folder: AttemptFolder, since: Instant },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Life {
    Alive,
    /// With how it ended, where that is known.
    Gone(String),
}

impl RunnerProcess {
    /// Starts a runner. It makes a session of its own, so that no signal to the agent's session reaches it.
    pub(crate) fn start(folder: &AttemptFolder, command: &RunnerCommand, nonce: &str) -> io::Result<Self> {
        let log = File::options().create(true).append(true).open(folder.log())?;
        let child = Command::new(&command.program)
            .args(&command.arguments)
            .arg(&folder.path)
            .env(NONCE_VARIABLE, nonce)
            .current_dir(&folder.path)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        // Refused in some containers; then the kernel picks by size, which is the runner as well.
        let _ = std::fs::write(format!("/proc/{}/oom_score_adj", child.id()), OOM_SCORE);
        Ok(RunnerProcess::Own(child))
    }

    /// Finds the runner of an earlier agent; `None` when none was started.
    pub(crate) fn adopt(folder: &AttemptFolder) -> Option<Self> {
        match folder.process() {
            Some(identity) => Some(RunnerProcess::Adopted(identity)),
            None if folder.is_locked() => {
                Some(RunnerProcess::Unborn { folder: folder.clone(), since: Instant::now() })
            }
            None => None,
        }
    }

    /// The runner of an earlier agent that was at work in the folder when `self`, which has ended, was started: that
    /// agent ended after it had started its runner and before that took its lock.
    pub(crate) fn forestalled_by(&self, folder: &AttemptFolder) -> Option<Self> {
        let RunnerProcess::Own(_) = self else { return None };
        match RunnerProcess::adopt(folder)? {
            RunnerProcess::Adopted(identity) if Some(identity.pid) == self.pid() => None,
            other => Some(other),
        }
    }

    pub(crate) fn look(&mut self) -> Life {
        match self {
            RunnerProcess::Own(child) => match child.try_wait() {
                Ok(None) => Life::Alive,
                Ok(Some(status)) => Life::Gone(describe(status)),
                Err(error) => Life::Gone(format!("cannot be watched: {error}")),
            },
            RunnerProcess::Adopted(identity) if identity.is_alive() => Life::Alive,
            RunnerProcess::Adopted(_) => Life::Gone("ended unseen".into()),
            RunnerProcess::Unborn { folder, since } => {
                if let Some(identity) = folder.process() {
                    *self = RunnerProcess::Adopted(identity);
                    return Life::Alive;
                }
                let waiting = since.elapsed() < BIRTH && folder.is_locked();
                if waiting { Life::Alive } else { Life::Gone("ended before it began".into()) }
            }
        }
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        match self {
            RunnerProcess::Own(child) => Some(child.id()),
            RunnerProcess::Adopted(identity) => Some(identity.pid),
            RunnerProcess::Unborn { .. } => None,
        }
    }

    /// Signals the runner and the processes it started. Only called while [`Self::look`] says that it is alive, so
    /// that the pid is its own.
    pub(crate) fn signal(&self, signal: Signal) {
        let Some(pid) = self.pid().and_then(|pid| i32::try_from(pid).ok()) else { return };
        // Before its `setsid` a runner leads no group.
        if kill(Pid::from_raw(-pid), signal).is_err() {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(9)) => "was killed by signal 9 (the kernel does that when memory runs out)".into(),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(name) => format!("was ended by {name}"),
            Err(_) => format!("was ended by signal {signal}"),
        },
        (None, None) => "ended".into(),
    }
}

/// The last lines of a log, for the message about a runner that left no result.
pub(crate) fn last_lines(log: &Path) -> String {
    use std::io::{Read, Seek, SeekFrom};
    const BYTES: u64 = 1024;
    let read = || -> io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(BYTES)))?;
        let mut bytes = Vec::new();
        file.take(BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::files::write_json;
    use crate::runner::process::boot_id;

    #[test]
    fn a_runner_that_finds_another_at_work_gives_way_to_it() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = AttemptFolder { path: temporary.path().join("7.1") };
        std::fs::create_dir(&folder.path).unwrap();
        let command = RunnerCommand { program: "false".into(), arguments: Vec::new() };
        let mut second = RunnerProcess::start(&folder, &command, "0").unwrap();
        while second.look() == Life::Alive {
            std::thread::yield_now();
        }
        assert!(second.forestalled_by(&folder).is_none(), "nobody else was there");
        let lock = File::create(folder.path.join("runner.lock")).unwrap();
        lock.lock().unwrap();
        assert!(matches!(second.forestalled_by(&folder), Some(RunnerProcess::Unborn { .. })));
        let identity =
            |pid| ProcessIdentity { pid, start_time: 1, boot: boot_id().unwrap(), nonce: "0".into() };
        let pid = second.pid().unwrap();
        write_json(&folder.path.join("pid.json"), &identity(pid)).unwrap();
        assert!(second.forestalled_by(&folder).is_none(), "it was itself at work");
        let first = identity(pid + 1);
        write_json(&folder.path.join("pid.json"), &first).unwrap();
        let found = second.forestalled_by(&folder);
        assert!(matches!(&found, Some(RunnerProcess::Adopted(found)) if *found == first), "{found:?}");
        assert!(found.unwrap().forestalled_by(&folder).is_none(), "the first gives way to nobody");
    }
}
