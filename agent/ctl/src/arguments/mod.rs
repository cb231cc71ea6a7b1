//! The command tree: what the user types, parsed, before anything is done.
//!
//! Every command has a one-line description and an example in its help; `docs/ctl.md` is rendered from this tree, and
//! a test compares the two. No system call happens here.

mod client;
mod local;

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

pub use client::{
    ArtifactsCommand, CancelArguments, JobsArguments, LoginArguments, LogsArguments, NodesArguments,
    PullArguments, ShowArguments, SubmitArguments, TokenCommand, TokenCreateArguments,
};
pub use local::{
    AdapterName, AgentArguments, BackendName, BenchArguments, BenchCommand, BenchEncodeArguments,
    BenchKernelsArguments, BenchTrainArguments, CompareArguments, DeviceArguments, DevicesArguments,
    DoctorArguments, EmbedArguments, EvaluateCommand, ExportArguments, FolderArguments, LossName,
    RunArguments, SchedulerArguments,
};

/// Fine-tune, evaluate and serve text-embedding models, on one machine or on a fleet.
#[derive(Debug, Parser)]
#[command(name = "ctl", version, arg_required_else_help = true, propagate_version = true)]
pub struct Arguments {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

/// Options that every command takes.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// Print JSON on stdout, with a stable schema.
    #[arg(long, global = true)]
    pub json: bool,
    /// Folder with the certificate for the scheduler [default: motley/identity in your configuration folder].
    #[arg(long, global = true, value_name = "DIR", env = "MOTLEY_IDENTITY", hide_env_values = true)]
    pub identity: Option<PathBuf>,
    /// Say more on stderr; twice for everything.
    #[arg(long, short, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a job document on this machine, from start to end, without any daemon.
    Run(RunArguments),
    /// Hand a job document and the files it names to the scheduler.
    Submit(SubmitArguments),
    /// List jobs, the newest last.
    Jobs(JobsArguments),
    /// Show one job: state, attempts, progress, results.
    Show(ShowArguments),
    /// Print what a job wrote.
    Logs(LogsArguments),
    /// Cancel a job; a running one writes a last checkpoint first.
    Cancel(CancelArguments),
    /// List the nodes of the fleet and what their devices do.
    Nodes(NodesArguments),
    /// Fetch what jobs left behind.
    #[command(subcommand)]
    Artifacts(ArtifactsCommand),
    /// Embed a file of texts, in order and in constant memory, without any server.
    Embed(EmbedArguments),
    /// Merge an adapter into its base model, as a sentence-transformers folder.
    Export(ExportArguments),
    /// Work with results of evaluations.
    #[command(subcommand)]
    Evaluate(EvaluateCommand),
    /// Measure speed and memory; prints one JSON line.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// List the devices of this machine, with memory, driver, and how fast they are.
    Devices(DevicesArguments),
    /// Check this machine: devices, memory, network, model hubs, disk, certificate; each with its remedy.
    Doctor(DoctorArguments),
    /// Run the scheduler of a fleet.
    Scheduler(SchedulerArguments),
    /// Run the agent that makes this machine a node of a fleet.
    Agent(AgentArguments),
    /// Make join tokens for nodes and users.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Turn a user token into a certificate in the identity folder.
    Login(LoginArguments),
    /// Run one attempt in its folder (started by the agent).
    #[command(hide = true)]
    Runner(FolderArguments),
    /// Look for the devices of a backend and measure them (started by agents and commands).
    #[command(hide = true)]
    ProbeDevices(ProbeArguments),
    /// Remove a temporary store when its owner has gone (started by `ctl run`).
    #[command(hide = true)]
    Sweeper(SweeperArguments),
}

/// What `ctl run` leaves to its sweeper.
#[derive(Debug, clap::Args)]
pub struct SweeperArguments {
    /// The temporary store.
    #[arg(value_name = "FOLDER")]
    pub folder: std::path::PathBuf,
    /// Folders made for the results, innermost first: removed if they stayed empty.
    #[arg(value_name = "RESERVED")]
    pub reserved: Vec<std::path::PathBuf>,
}

/// What a probe of devices is told.
#[derive(Debug, clap::Args)]
pub struct ProbeArguments {
    /// The backend whose devices are wanted.
    #[arg(long, value_enum)]
    pub backend: BackendName,
    /// Which devices to measure, where nothing is known.
    #[arg(long, value_enum)]
    pub measure: Option<MeasureName>,
    /// File of what was measured before.
    #[arg(long, value_name = "FILE")]
    pub known: Option<PathBuf>,
}

/// Which devices are measured, on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum MeasureName {
    /// All but software adapters.
    Hardware,
    Everything,
}

/// `--set KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    pub key: String,
    pub value: String,
}

fn parse_setting(text: &str) -> Result<Setting, String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => {
            Ok(Setting { key: key.trim().to_owned(), value: value.trim().to_owned() })
        }
        _ => Err("expected KEY=VALUE, such as train.epochs=3".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_tree_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn settings_need_a_key() {
        assert_eq!(
            parse_setting("train.epochs = 3"),
            Ok(Setting { key: "train.epochs".into(), value: "3".into() })
        );
        for text in ["", "epochs", "=3"] {
            assert!(parse_setting(text).is_err(), "{text}");
        }
    }
}
