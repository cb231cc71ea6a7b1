//! `ctl probe-devices`: the devices of one backend, for agents and commands that open no driver themselves.

use motley_agent_node::devices::inventory::probe as look;
use motley_agent_node::devices::{Measure, Probe};

use crate::arguments::{MeasureName, ProbeArguments};
use crate::failure::Failure;
use crate::folders;
use crate::output::Output;

/// Prints one line of JSON, always: a program reads it.
pub fn probe(arguments: &ProbeArguments, output: &Output) -> Result<(), Failure> {
    let backend = arguments.backend.kind().ok_or_else(|| {
        Failure::usage("`auto` has no devices of its own").hint("name a backend: cuda, wgpu or cpu")
    })?;
    let measure = match arguments.measure {
        None => Measure::Nothing,
        Some(MeasureName::Hardware) => Measure::Hardware,
        Some(MeasureName::Everything) => Measure::Everything,
    };
    let inventory = look(backend, measure, arguments.known.as_deref());
    let value = serde_json::to_value(&inventory).map_err(Failure::failed)?;
    output.json_line(&value);
    Ok(())
}

/// How commands of this user look for devices; what they measure is kept beside their models.
pub(crate) fn local_probe() -> Result<Probe, Failure> {
    Probe::of_this_program(folders::cache()?.join("devices.json"))
        .map_err(|error| Failure::failed(format!("cannot find this program: {error}")))
}
