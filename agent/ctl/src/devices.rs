//! `ctl devices`: what this machine computes on, as found and measured by processes of their own.
//!
//! `ctl probe-devices` is such a process: agents and commands open no driver themselves.

use motley_agent_node::devices::inventory::{MissingRecord, probe as look};
use motley_agent_node::devices::{DeviceRecord, Inventory, Measure, Probe};
use motley_scheduler_core::document::{BackendKind, Resources};
use motley_scheduler_core::unit::Bytes;
use serde_json::{Value, json};

use crate::arguments::{DevicesArguments, MeasureName, ProbeArguments};
use crate::failure::Failure;
use crate::folders;
use crate::output::Output;
use crate::output::table::Table;

/// Lists the devices of this machine.
pub fn list(arguments: &DevicesArguments, output: &Output) -> Result<(), Failure> {
    let measure = if arguments.no_measure { Measure::Nothing } else { Measure::Everything };
    let inventory = local_probe()?.inventory(&BackendKind::ALL, measure);
    output.data(|| text(&inventory), || value(&inventory));
    Ok(())
}

fn text(inventory: &Inventory) -> String {
    let header = ["DEVICE", "NAME", "MEMORY", "PRECISION", "TFLOP/S", "NF4", "GB/S", "CAPABILITY", "DRIVER"];
    let mut table = Table::new(&header, &[2, 4, 5, 6]);
    let fastest = inventory.fastest().map(DeviceRecord::id);
    for device in &inventory.devices {
        for (row, precision) in device.precisions.iter().enumerate() {
            let rates = device.rates.get(precision);
            let tera = |rate: f64| format!("{:.3}", rate / 1e12);
            let mut cells = match row {
                0 => vec![device.id(), device.name.clone(), shown_memory(device)],
                _ => vec![String::new(); 3],
            };
            cells.push(precision.clone());
            cells.push(rates.map(|rates| tera(rates.gemm)).unwrap_or_default());
            cells.push(rates.map(|rates| tera(rates.nf4)).unwrap_or_default());
            cells.push(rates.map(|rates| format!("{:.1}", rates.bandwidth / 1e9)).unwrap_or_default());
            cells.extend(match row {
                0 => [device.capability.clone(), device.driver.clone()],
                _ => [String::new(), String::new()],
            });
            table.row(cells);
        }
    }
    let mut text = table.render();
    for device in inventory.devices.iter().filter(|device| device.is_software) {
        text.push_str(&format!(
            "{} computes on the processor: it is taken only when its backend is named\n",
            device.id()
        ));
    }
    for device in &inventory.devices {
        if let Some(failure) = &device.failure {
            text.push_str(&format!("{} could not be measured: {failure}\n", device.id()));
        }
    }
    for MissingRecord { backend, what, remedy } in &inventory.missing {
        text.push_str(&format!("{}: {what}\nhint: {remedy}\n", backend.name()));
    }
    if let Some(fastest) = fastest {
        text.push_str(&format!("backend = \"auto\" takes {fastest}\n"));
    }
    text
}

fn shown_memory(device: &DeviceRecord) -> String {
    device.memory.map_or_else(|| "host".to_owned(), |bytes| Bytes(bytes).to_string())
}

fn value(inventory: &Inventory) -> Value {
    let device = |device: &DeviceRecord| {
        let rates = device.rates.iter().map(|(precision, rates)| {
            let rates = json!({
                "gemm_flops_per_s": rates.gemm,
                "nf4_flops_per_s": rates.nf4,
                "bandwidth_bytes_per_s": rates.bandwidth,
            });
            (precision.clone(), rates)
        });
        json!({
            "device": device.id(),
            "backend": device.backend.name(),
            "index": device.index,
            "name": device.name,
            "memory_bytes": device.memory,
            "driver": device.driver,
            "capability": device.capability,
            "is_software": device.is_software,
            "precisions": device.precisions,
            "rates": Value::Object(rates.collect()),
            "failure": device.failure,
        })
    };
    let missing = |missing: &MissingRecord| json!({ "backend": missing.backend.name(), "what": missing.what, "remedy": missing.remedy });
    json!({
        "devices": inventory.devices.iter().map(device).collect::<Vec<_>>(),
        "missing": inventory.missing.iter().map(missing).collect::<Vec<_>>(),
        "fastest": inventory.fastest().map(DeviceRecord::id),
    })
}

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

/// The devices of this machine, unmeasured but for what is known.
pub(crate) async fn look_around() -> Result<Inventory, Failure> {
    let probe = local_probe()?;
    let look = tokio::task::spawn_blocking(move || probe.inventory(&BackendKind::ALL, Measure::Nothing));
    look.await.map_err(|error| Failure::failed(format!("looking for devices failed: {error}")))
}

/// Refuses devices that are not here: with those that are, and what the wanted backends lack.
pub(crate) async fn absent(refusal: &str, wanted: &[Resources]) -> Result<Failure, Failure> {
    let inventory = look_around().await?;
    let there: Vec<String> =
        inventory.devices.iter().map(|device| format!("{} ({})", device.id(), device.name)).collect();
    let wanted = |missing: &&MissingRecord| wanted.iter().any(|each| each.backend.contains(&missing.backend));
    let remedy = match inventory.missing.iter().find(wanted) {
        Some(MissingRecord { what, remedy, .. }) => format!("{what}: {remedy}; or set backend = \"auto\""),
        None => "set backend = \"auto\", or name a device that is here".to_owned(),
    };
    Ok(Failure::usage(format!("{refusal}; it has {}", there.join(", "))).hint(remedy))
}

#[cfg(test)]
mod tests {
    use super::*;
    use motley_agent_node::devices::measure::Rates;

    #[test]
    fn every_device_is_listed_with_what_is_known_of_it() {
        let rates = Rates { gemm: 4.5e14, nf4: 3e14, bandwidth: 2.5e12 };
        let card = DeviceRecord {
            backend: BackendKind::Cuda,
            index: 1,
            name: "card".into(),
            memory: Some(80 << 30),
            driver: "580.1".into(),
            capability: "sm_90".into(),
            is_software: false,
            precisions: vec!["bf16".into(), "f32".into()],
            rates: [("bf16".to_owned(), rates)].into(),
            failure: None,
        };
        let software = DeviceRecord {
            backend: BackendKind::Wgpu,
            index: 0,
            name: "llvmpipe".into(),
            memory: None,
            is_software: true,
            precisions: vec!["f32".into()],
            rates: Default::default(),
            failure: Some("no memory".into()),
            ..card.clone()
        };
        let missing = MissingRecord {
            backend: BackendKind::Cuda,
            what: "no NVRTC".into(),
            remedy: "install it".into(),
        };
        let inventory = Inventory { devices: vec![card, software], missing: vec![missing] };
        let text = text(&inventory);
        for wanted in [
            "cuda:1",
            "80GiB",
            "450.000",
            "300.000",
            "2500.0",
            "sm_90",
            "580.1",
            "host",
            "wgpu:0 computes on the processor",
            "wgpu:0 could not be measured: no memory",
            "cuda: no NVRTC\nhint: install it\n",
            "backend = \"auto\" takes cuda:1\n",
        ] {
            assert!(text.contains(wanted), "{wanted} in\n{text}");
        }
        let value = value(&inventory);
        assert_eq!(value["fastest"], "cuda:1");
        assert_eq!(value["devices"][0]["rates"]["bf16"]["gemm_flops_per_s"], 4.5e14);
        assert_eq!(value["devices"][1]["memory_bytes"], Value::Null);
    }
}
