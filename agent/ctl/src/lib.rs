//! The one binary, `ctl`: command line, embedded mode, daemons.
//!
//! ```text
//! arguments   what the user typed: the command tree
//! fleet       commands that talk to a scheduler, and the two daemons
//! run         `ctl run`: scheduler and agent in this process, with a temporary store
//! local       embed, export, evaluate compare: work without any scheduler
//! bench       how fast a device is
//! devices     which devices this machine has
//! doctor      what is right and wrong with this machine
//! output      tables, JSON, progress: data on stdout, talk on stderr
//! failure     messages, hints, exit codes
//! ```
//!
//! Nothing here computes or decides: that is done below. Exit codes: 0 ok, 1 job failed, 2 usage, 3 not found,
//! 4 denied, 5 unreachable.

mod arguments;
mod bench;
mod devices;
mod doctor;
mod failure;
mod fleet;
mod folders;
mod local;
mod output;
mod run;
mod signals;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use tracing_subscriber::EnvFilter;

use arguments::{Arguments, ArtifactsCommand, Command, Common, EvaluateCommand, TokenCommand};
use failure::Failure;
use output::Output;

/// Runs `ctl`.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let output = Output::new(arguments.common.json);
    start_logging(&arguments);
    // The runner is a process of its own kind: no runtime of ours, and its exit code is not ours to choose.
    if let Command::Runner(runner) = &arguments.command {
        return motley_agent_node::runner_main(&runner.folder);
    }
    match dispatch(arguments.common, arguments.command, &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            failure.exit.into()
        }
    }
}

/// The command tree, for the documentation and its test.
pub fn command_tree() -> clap::Command {
    Arguments::command()
}

fn dispatch(common: Common, command: Command, output: &Output) -> Result<(), Failure> {
    match command {
        Command::Embed(arguments) => return local::embed(arguments, output),
        Command::Export(arguments) => return local::export(arguments, output),
        Command::Evaluate(EvaluateCommand::Compare(arguments)) => return local::compare(arguments, output),
        Command::Bench(command) => return bench::run(command, output),
        Command::Devices(arguments) => return devices::list(&arguments, output),
        Command::ProbeDevices(arguments) => return devices::probe(&arguments, output),
        Command::Sweeper(arguments) => return run::sweeper::main(&arguments),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start threads: {error}")))?;
    let result = runtime.block_on(talk(&common, command, output));
    // A blocking task that still hashes a file must not hold up the end.
    runtime.shutdown_background();
    result
}

async fn talk(common: &Common, command: Command, output: &Output) -> Result<(), Failure> {
    match command {
        Command::Run(arguments) => run::run(arguments, output).await,
        Command::Submit(arguments) => fleet::submission::submit(common, arguments, output).await,
        Command::Jobs(arguments) => fleet::jobs::list(common, arguments, output).await,
        Command::Show(arguments) => fleet::jobs::show(common, arguments, output).await,
        Command::Logs(arguments) => fleet::jobs::logs(common, arguments, output).await,
        Command::Cancel(arguments) => fleet::jobs::cancel(common, arguments, output).await,
        Command::Nodes(_) => fleet::jobs::nodes(common, output).await,
        Command::Artifacts(ArtifactsCommand::Pull(arguments)) => {
            fleet::pull::pull(common, arguments, output).await
        }
        Command::Doctor(arguments) => doctor::doctor(common, arguments, output).await,
        Command::Scheduler(arguments) => fleet::daemon::scheduler(common, arguments, output).await,
        Command::Agent(arguments) => fleet::daemon::agent(arguments, output).await,
        Command::Token(TokenCommand::Create(arguments)) => {
            fleet::token::create(common, arguments, output).await
        }
        Command::Login(arguments) => fleet::token::login(common, arguments, output).await,
        Command::Embed(_)
        | Command::Export(_)
        | Command::Evaluate(_)
        | Command::Bench(_)
        | Command::Devices(_)
        | Command::ProbeDevices(_)
        | Command::Runner(_)
        | Command::Sweeper(_) => unreachable!("handled without a runtime"),
    }
}

/// Log lines on stderr: warnings only, unless a daemon runs or the user asked for more. `MOTLEY_LOG` overrides.
fn start_logging(arguments: &Arguments) {
    let daemon = matches!(arguments.command, Command::Scheduler(_) | Command::Agent(_));
    let embedded = matches!(arguments.command, Command::Run(_));
    let level = match (arguments.common.verbose, daemon) {
        // What befalls the job is told by the run itself.
        (0, false) if embedded => "warn,motley_scheduler_head::outside=error",
        (0, false) => "warn",
        (0, true) => "info",
        (1, _) => {
            "motley=debug,motley_agent_ctl=debug,motley_agent_node=debug,motley_scheduler_head=debug,\
                   motley_scheduler_link=debug,info"
        }
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("MOTLEY_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}
