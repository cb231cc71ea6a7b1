//! The program under test as a process: run to its end, or kept running and killed with the test.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// What waiting is for at most. Generous: the suites share a machine with whatever else it does, and speed is not
/// what they prove.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// A command of `ctl`, before it runs.
#[derive(Debug)]
pub struct Ctl {
    command: Command,
    shown: String,
}

/// A command of `ctl` that has ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    shown: String,
}

impl Ctl {
    /// `program` is `env!("CARGO_BIN_EXE_ctl-under-test")`; `home` stands in for the user's folders, so that nothing
    /// of the real user is read or written.
    pub fn new(program: &str, home: &Path) -> Self {
        let mut command = Command::new(program);
        command
            .env("HOME", home)
            .env("XDG_CONFIG_HOME", home.join("config"))
            .env("XDG_DATA_HOME", home.join("data"))
            .env("XDG_CACHE_HOME", home.join("cache"))
            .env("TMPDIR", home)
            // A hub that nobody can reach, at once: suites fetch nothing.
            .env("HF_ENDPOINT", "http://127.0.0.1:9")
            .env_remove("MOTLEY_IDENTITY")
            .env_remove("MOTLEY_LOG")
            .stdin(Stdio::null());
        Ctl { command, shown: "ctl".to_owned() }
    }

    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.shown = format!("{} {}", self.shown, argument.as_ref().to_string_lossy());
        self.command.arg(argument);
        self
    }

    /// Arguments separated by spaces.
    pub fn args(self, arguments: &str) -> Self {
        arguments.split_whitespace().fold(self, |ctl, argument| ctl.arg(argument))
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn in_folder(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Runs to the end.
    pub fn end(mut self) -> Ended {
        let output = self.command.output().unwrap_or_else(|error| panic!("{}: {error}", self.shown));
        Ended {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            shown: self.shown,
        }
    }

    /// Runs on; stderr goes to a file.
    pub fn start(mut self, stderr: &Path) -> Running {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(stderr).expect("the log opens");
        self.command.stdout(Stdio::piped()).stderr(file);
        let mut child = self.command.spawn().unwrap_or_else(|error| panic!("{}: {error}", self.shown));
        let lines = read_lines(child.stdout.take().expect("stdout is piped"));
        Running { child, lines, shown: self.shown, stderr: stderr.to_path_buf() }
    }
}

fn read_lines(stdout: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

impl Ended {
    /// Fails the test unless the command ended with this code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}\nstdout: {}\nstderr: {}", self.shown, self.stdout, self.stderr);
        self
    }

    /// stdout as one JSON value.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{}: {error}\n{}\n{}", self.shown, self.stdout, self.stderr))
    }

    /// Fails the test unless stderr holds each of these words.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.stderr.contains(word), "{}: no `{word}` in\n{}", self.shown, self.stderr);
        }
        self
    }
}

/// A process that runs until it is told to end, or the test ends.
#[derive(Debug)]
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    shown: String,
    stderr: std::path::PathBuf,
}

impl Running {
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// The next line of stdout.
    #[track_caller]
    pub fn line(&mut self) -> String {
        self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            let log = std::fs::read_to_string(&self.stderr).unwrap_or_default();
            panic!("{} printed no line; stderr:\n{log}", self.shown)
        })
    }

    /// What is left on stdout, once the process has ended.
    pub fn rest(&mut self) -> Vec<String> {
        self.lines.iter().collect()
    }

    pub fn signal(&self, signal: Signal) {
        send_signal(self.pid(), signal);
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().expect("a child can be waited for");
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(Instant::now() < deadline, "{} does not end:\n{}", self.shown, self.stderr_text());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn stderr_text(&self) -> String {
        let mut text = String::new();
        let file = std::fs::File::open(&self.stderr);
        if file.and_then(|mut file| file.read_to_string(&mut text)).is_err() {
            text.push_str("(no log)");
        }
        text
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill();
        }
    }
}

/// To a process that need not be our child.
pub fn send_signal(pid: i32, signal: Signal) {
    let pid = Pid::from_raw(pid).expect("process numbers are positive");
    // It may be gone already, which is what most signals are for.
    let _gone = kill_process(pid, signal);
}

/// Whether a process runs; a zombie does not.
pub fn is_alive(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let state = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next());
    !matches!(state, Some("Z" | "X") | None)
}

/// Whether every thread of a process stands still: SIGSTOP is sent at once, but takes effect later, thread by thread.
pub fn is_stopped(pid: i32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    let states = threads.flatten().map(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).ok()?;
        stat.rsplit(')').next()?.split_whitespace().next().map(str::to_owned)
    });
    let states: Vec<Option<String>> = states.collect();
    !states.is_empty() && states.iter().all(|state| state.as_deref() == Some("T"))
}

/// Asks again and again until there is an answer.
#[track_caller]
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
