//! A fleet of real processes: scheduler, agents and their runners, each with a state folder that vanishes.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Ctl, Running, wait_for};

/// Scheduler, agents and the admin's identity below one temporary folder.
#[derive(Debug)]
pub struct Fleet {
    program: &'static str,
    folder: TempDir,
    /// Where the first start of the scheduler listened; its restarts do so again.
    address: Option<String>,
    /// Of the scheduler, at every start.
    options: &'static str,
    scheduler: Option<Running>,
}

impl Fleet {
    /// Starts a scheduler.
    pub fn start(program: &'static str) -> Fleet {
        Fleet::start_with(program, "")
    }

    /// Starts a scheduler with further options.
    pub fn start_with(program: &'static str, options: &'static str) -> Fleet {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let mut fleet = Fleet { program, folder, address: None, options, scheduler: None };
        fleet.start_scheduler();
        fleet
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn address(&self) -> String {
        self.address.clone().expect("the scheduler has started once")
    }

    /// A command with the admin's identity.
    pub fn ctl(&self, arguments: &str) -> Ctl {
        self.anybody(arguments).env("MOTLEY_IDENTITY", self.path("identity"))
    }

    /// A command of somebody without an identity.
    pub fn anybody(&self, arguments: &str) -> Ctl {
        Ctl::new(self.program, self.folder.path()).args(arguments)
    }

    /// The first time on a port that the kernel picks, later on the same one, with the same state.
    pub fn start_scheduler(&mut self) {
        let listen = self.address.clone().unwrap_or_else(|| "127.0.0.1:0".to_owned());
        let mut running = self
            .ctl("scheduler --json")
            .args(self.options)
            .arg("--state")
            .arg(self.path("scheduler"))
            .arg("--listen")
            .arg(listen)
            .start(&self.path("scheduler.log"));
        let line: Value = serde_json::from_str(&running.line()).expect("the scheduler says where it listens");
        let address = line["address"].as_str().expect("an address").to_owned();
        let before = self.address.replace(address.clone());
        assert!(before.is_none_or(|before| before == address), "a restart moved to {address}");
        self.scheduler = Some(running);
    }

    pub fn kill_scheduler(&mut self) {
        self.scheduler.take().expect("a scheduler runs").kill();
    }

    pub fn scheduler_log(&self) -> String {
        std::fs::read_to_string(self.path("scheduler.log")).unwrap_or_default()
    }

    pub fn token(&self) -> String {
        self.ctl("token create --json").end().expect(0).json()["token"].as_str().expect("a token").to_owned()
    }

    /// Joins a new node and waits until it is ready.
    pub fn start_agent(&self, name: &str) -> Agent {
        let mut agent = Agent { state: self.path(name), running: None };
        agent.running = Some(self.agent_process(name, Some(&self.token())));
        self.wait_for_nodes(1);
        agent
    }

    /// Starts the agent of a node that has joined before.
    pub fn restart_agent(&self, agent: &mut Agent) {
        let name =
            agent.state.file_name().expect("an agent's state has a name").to_string_lossy().into_owned();
        agent.running = Some(self.agent_process(&name, None));
    }

    fn agent_process(&self, name: &str, token: Option<&str>) -> Running {
        let command = self.anybody("agent --threads 1 --scheduler").arg(self.address());
        let command = command.arg("--state").arg(self.path(name)).arg("--name").arg(name);
        let command = match token {
            Some(token) => command.arg("--token").arg(token),
            None => command,
        };
        command.start(&self.path(&format!("{name}.log")))
    }

    pub fn wait_for_nodes(&self, count: usize) {
        wait_for("ready nodes", || {
            let nodes = self.ctl("nodes --json").end().expect(0).json();
            let nodes = nodes["nodes"].as_array()?.clone();
            (nodes.iter().filter(|node| node["state"] == "ready").count() >= count).then_some(())
        });
    }

    /// Submits and returns the job's number.
    #[track_caller]
    pub fn submit(&self, document: &Path) -> u64 {
        let ended = self.ctl("submit --json").arg(document).end().expect(0);
        ended.json()["job"].as_u64().expect("a job number")
    }

    #[track_caller]
    pub fn job(&self, job: u64) -> Value {
        self.ctl(&format!("show {job} --json")).end().expect(0).json()
    }

    /// Waits until the job has ended, and returns its view.
    #[track_caller]
    pub fn wait_for_end(&self, job: u64) -> Value {
        wait_for("the job's end", || {
            let view = self.job(job);
            let ended = ["succeeded", "failed", "cancelled"].iter().any(|state| view["state"] == *state);
            ended.then_some(view)
        })
    }

    /// Fetches results into a new folder.
    #[track_caller]
    pub fn pull(&self, job: u64, name: &str) -> PathBuf {
        let folder = self.path(name);
        self.ctl(&format!("artifacts pull {job}")).arg(&folder).end().expect(0);
        folder
    }
}

/// An agent, running or not.
#[derive(Debug)]
pub struct Agent {
    pub state: PathBuf,
    pub running: Option<Running>,
}

impl Agent {
    pub fn kill(&mut self) {
        self.running.take().expect("the agent runs").kill();
    }

    /// The folder of an attempt on this node.
    pub fn attempt(&self, job: u64, number: u32) -> PathBuf {
        self.state.join("attempts").join(format!("{job}.{number}"))
    }

    /// The process of an attempt, once it is there.
    pub fn runner(&self, job: u64, number: u32) -> i32 {
        let path = self.attempt(job, number).join("pid.json");
        wait_for("the runner", || {
            let value: Value = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
            i32::try_from(value["pid"].as_i64()?).ok()
        })
    }
}

/// A runner outlives its agent, so a test that fails must end it.
impl Drop for Agent {
    fn drop(&mut self) {
        self.running = None;
        let Ok(attempts) = std::fs::read_dir(self.state.join("attempts")) else { return };
        for attempt in attempts.flatten() {
            let identity = std::fs::read(attempt.path().join("pid.json")).unwrap_or_default();
            let pid = serde_json::from_slice(&identity).ok().and_then(|value: Value| value["pid"].as_i64());
            let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()) else { continue };
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&command).contains(&*self.state.to_string_lossy()) {
                crate::process::send_signal(pid, rustix::process::Signal::KILL);
            }
        }
    }
}
