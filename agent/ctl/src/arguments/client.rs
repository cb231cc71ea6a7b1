//! Arguments of the commands that talk to a scheduler.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use motley_scheduler_core::authorize::Role;
use motley_scheduler_core::id::JobId;
use motley_scheduler_core::unit::Span;

use super::{Setting, parse_setting};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  ctl submit train.toml\n  ctl submit train.toml --set train.epochs=3 --watch"
)]
pub struct SubmitArguments {
    /// The job document.
    #[arg(value_name = "FILE")]
    pub document: PathBuf,
    /// Override a key of the document; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = parse_setting)]
    pub settings: Vec<Setting>,
    /// Follow the job until it ends; the exit code is the job's.
    #[arg(long)]
    pub watch: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ctl jobs\n  ctl jobs --limit 10\n  ctl jobs --all --json")]
pub struct JobsArguments {
    /// The newest so many.
    #[arg(long, value_name = "N", default_value_t = 100, conflicts_with = "all")]
    pub limit: u32,
    /// All of them, however many there are.
    #[arg(long)]
    pub all: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ctl show 7\n  ctl show 7 --watch")]
pub struct ShowArguments {
    /// The job's number.
    #[arg(value_name = "JOB")]
    pub job: JobId,
    /// Follow the job until it ends; the exit code is the job's.
    #[arg(long)]
    pub watch: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ctl logs 7\n  ctl logs 7 -f\n  ctl logs 7 --attempt 1")]
pub struct LogsArguments {
    /// The job's number.
    #[arg(value_name = "JOB")]
    pub job: JobId,
    /// Go on printing until the job ends.
    #[arg(long, short)]
    pub follow: bool,
    /// Which attempt, from 1 [default: the newest].
    #[arg(long, value_name = "N")]
    pub attempt: Option<u32>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ctl cancel 7")]
pub struct CancelArguments {
    /// The job's number.
    #[arg(value_name = "JOB")]
    pub job: JobId,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ctl nodes\n  ctl nodes --json")]
pub struct NodesArguments {}

#[derive(Debug, Subcommand)]
pub enum ArtifactsCommand {
    /// Copy a job's results (or its newest checkpoint) into a folder.
    Pull(PullArguments),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  ctl artifacts pull 7 ./result\n  ctl artifacts pull 7 ./state --checkpoint"
)]
pub struct PullArguments {
    /// The job's number.
    #[arg(value_name = "JOB")]
    pub job: JobId,
    /// Where the files go; made if absent.
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// The newest checkpoint instead of the results.
    #[arg(long)]
    pub checkpoint: bool,
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Print a single-use join token, for a node or for a user.
    Create(TokenCreateArguments),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  ctl token create\n  ctl token create --user anna --role submitter --valid 1h"
)]
pub struct TokenCreateArguments {
    /// For a user of this name instead of a node.
    #[arg(long, value_name = "NAME", requires = "role")]
    pub user: Option<String>,
    /// What the user may do; each role may do all that the ones before it may.
    #[arg(long, value_enum, requires = "user")]
    pub role: Option<RoleName>,
    /// How long the token can be used.
    #[arg(long, value_name = "TIME", default_value = "15m")]
    pub valid: Span,
}

/// A role on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RoleName {
    Viewer,
    Submitter,
    Operator,
    Admin,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Viewer => Role::Viewer,
            RoleName::Submitter => Role::Submitter,
            RoleName::Operator => Role::Operator,
            RoleName::Admin => Role::Admin,
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ctl login --scheduler fleet.example.org:7443 --token motley1.5f0c...")]
pub struct LoginArguments {
    /// Address of the scheduler.
    #[arg(long, value_name = "HOST:PORT")]
    pub scheduler: String,
    /// A token made by `ctl token create --user`.
    #[arg(long)]
    pub token: String,
}
