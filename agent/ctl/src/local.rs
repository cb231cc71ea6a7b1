//! Commands that work without any scheduler: embed, export, compare, bench. Each is one call of the node's library.

use motley_agent_node::workload::compare::compare as compare_reports;

use crate::arguments::{
    BenchEncodeArguments, BenchTrainArguments, CompareArguments, EmbedArguments, ExportArguments,
};
use crate::failure::Failure;
use crate::output::Output;

pub fn embed(_arguments: EmbedArguments, _output: &Output) -> Result<(), Failure> {
    Err(Failure::failed("not here yet"))
}

pub fn export(_arguments: ExportArguments, _output: &Output) -> Result<(), Failure> {
    Err(Failure::failed("not here yet"))
}

pub fn bench_encode(_arguments: BenchEncodeArguments, _output: &Output) -> Result<(), Failure> {
    Err(Failure::failed("not here yet"))
}

pub fn bench_train(_arguments: BenchTrainArguments, _output: &Output) -> Result<(), Failure> {
    Err(Failure::failed("not here yet"))
}

/// Exits with 1 when B is worse, for use in continuous integration.
pub fn compare(arguments: CompareArguments, output: &Output) -> Result<(), Failure> {
    for path in [&arguments.baseline, &arguments.candidate] {
        if !path.exists() {
            return Err(Failure::not_found(format!("no file or folder {}", path.display()))
                .hint("name a report.json, or the folder that holds it"));
        }
    }
    let comparison = compare_reports(&arguments.baseline, &arguments.candidate, arguments.tolerance)
        .map_err(Failure::usage)?;
    output.data(|| comparison.to_string(), || serde_json::to_value(&comparison).unwrap_or_default());
    match comparison.worse {
        false => Ok(()),
        true => Err(Failure::failed(format!("B is worse than A by more than {}", arguments.tolerance))),
    }
}
