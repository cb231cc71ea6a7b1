//! Strict parsing of job documents: the tables that all kinds share. [`super::workload`] has the rest.

use super::model::{AdapterReference, Model, ModelPrecision, Quantization, Source, parse_source};
use super::reader::{Found, Reader, Table, tree};
use super::resources::{BackendKind, DeviceCount, Memory, Priority, Resources};
use super::{Document, DocumentError, model::AdapterBase, workload};

/// Most `[[resources]]` and `[[evaluate]]` tables of a document: bounds what the scheduler keeps for a job.
const TABLES_MAX: usize = 64;

pub(super) fn parse(text: &str) -> Result<Document, DocumentError> {
    let tree = tree(text)?;
    let reader = Reader::new(text, tree.get_ref())?;
    let top = reader.top();
    let name = top.required("name")?;
    Ok(Document {
        name: check_name(&name, name.text()?)?,
        priority: match top.choice("priority", "normal")? {
            "low" => Priority::Low,
            "high" => Priority::High,
            "urgent" => Priority::Urgent,
            _ => Priority::Normal,
        },
        resources: resources(&reader)?,
        workload: workload::parse(&reader)?,
    })
}

fn resources(reader: &Reader<'_>) -> Result<Vec<Resources>, DocumentError> {
    let tables = bounded(reader.tables("resources", "resources"), "resources")?;
    if tables.is_empty() {
        return Ok(vec![Resources::default()]);
    }
    tables.iter().map(one_resources).collect()
}

fn one_resources(table: &Table<'_>) -> Result<Resources, DocumentError> {
    let mut resources = Resources::default();
    if let Some(found) = table.get("devices") {
        resources.devices = device_count(&found)?;
    }
    if let Some(found) = table.get("backend") {
        (resources.backend, resources.fastest) = backends(&found)?;
    }
    if let Some(found) = table.get("device") {
        resources.device = indices(&found)?;
    }
    if let Some(found) = table.get("memory") {
        resources.memory = match found.text()? {
            "auto" => Memory::Auto,
            _ => Memory::Exact(found.size()?),
        };
    }
    resources.threads =
        table.get("threads").map(|found| found.integer()).transpose()?.map(|threads| threads as u32);
    Ok(resources)
}

fn device_count(found: &Found<'_>) -> Result<DeviceCount, DocumentError> {
    const DEVICES_MAX: u32 = 4096;
    let parsed = match found.value() {
        toml::de::DeValue::Integer(count) => {
            count.to_string().parse().ok().map(|count| DeviceCount { min: count, max: count })
        }
        toml::de::DeValue::String(range) => range.split_once("..").and_then(|(min, max)| {
            Some(DeviceCount { min: min.trim().parse().ok()?, max: max.trim().parse().ok()? })
        }),
        _ => return Err(found.wrong_type()),
    };
    let possible = |count: &DeviceCount| 1 <= count.min && count.min <= count.max && count.max <= DEVICES_MAX;
    parsed.filter(possible).ok_or_else(|| found.bad_value())
}

/// Which backends, and whether the fastest of them is meant instead of the first.
fn backends(found: &Found<'_>) -> Result<(Vec<BackendKind>, bool), DocumentError> {
    const NAMES: &[&str] = &["cuda", "wgpu", "cpu"];
    const NAMES_ALONE: &[&str] = &["auto", "cuda", "wgpu", "cpu"];
    let texts = match found.value() {
        toml::de::DeValue::String(_) => vec![found.one_of(found.text()?, NAMES_ALONE)?],
        _ => found.texts()?,
    };
    if texts == ["auto"] && !matches!(found.value(), toml::de::DeValue::Array(_)) {
        return Ok((BackendKind::ALL.to_vec(), true));
    }
    let mut backends = Vec::new();
    for text in texts {
        let kind = match found.one_of(text, NAMES)? {
            "cuda" => BackendKind::Cuda,
            "wgpu" => BackendKind::Wgpu,
            _ => BackendKind::Cpu,
        };
        if backends.contains(&kind) {
            return Err(found.bad_value());
        }
        backends.push(kind);
    }
    if backends.is_empty() { Err(found.bad_value()) } else { Ok((backends, false)) }
}

/// `device = 1` or `device = [0, 1]`.
fn indices(found: &Found<'_>) -> Result<Vec<u32>, DocumentError> {
    use toml::de::DeValue;
    const INDEX_MAX: u32 = 4095;
    let index = |value: &DeValue<'_>| match value {
        DeValue::Integer(index) => index
            .to_string()
            .parse()
            .ok()
            .filter(|index| *index <= INDEX_MAX)
            .ok_or_else(|| found.bad_value()),
        _ => Err(found.wrong_type()),
    };
    let indices: Vec<u32> = match found.value() {
        DeValue::Array(items) => items.iter().map(|item| index(item.get_ref())).collect::<Result<_, _>>()?,
        other => vec![index(other)?],
    };
    let distinct: std::collections::BTreeSet<_> = indices.iter().collect();
    match indices.is_empty() || distinct.len() != indices.len() {
        true => Err(found.bad_value()),
        false => Ok(indices),
    }
}

/// `[model]`.
pub(super) fn model(reader: &Reader<'_>) -> Result<Model, DocumentError> {
    let table = reader.table("model");
    let found = table.required("source")?;
    let source = parse_source(found.text()?).ok_or_else(|| found.bad_value())?;
    let fallbacks = match table.get("fallbacks") {
        None => Vec::new(),
        Some(found) => {
            let parse = |text| parse_source(text).ok_or_else(|| found.bad_value());
            found.texts()?.into_iter().map(parse).collect::<Result<_, _>>()?
        }
    };
    let sha256 = match table.get("sha256") {
        None => None,
        Some(found) => Some(found.text()?.parse().map_err(|_| found.bad_value())?),
    };
    let max_length = table.get("max_length").map(|found| found.integer()).transpose()?;
    let prompts = match table.get("prompts") {
        None => Vec::new(),
        Some(found) => found.text_table()?,
    };
    Ok(Model {
        source,
        fallbacks,
        revision: table.text("revision")?,
        sha256,
        max_length: max_length.map(|length| length as u32),
        prompts: prompts.into_iter().collect(),
        dropout_from_config: table.choice("dropout", "off")? == "config",
        precision: match table.choice("precision", "auto")? {
            "f32" => ModelPrecision::F32,
            "bf16" => ModelPrecision::Bf16,
            _ => ModelPrecision::Auto,
        },
    })
}

/// `quantization` and `double_quantization` of `table`; `absent` when the first is not there.
pub(super) fn quantization(
    table: &Table<'_>,
    absent: Option<Quantization>,
) -> Result<Option<Quantization>, DocumentError> {
    if table.get("quantization").is_none() && absent.is_none() {
        table.refuse(&["double_quantization"], "full precision", "add `quantization = \"nf4\"`")?;
        return Ok(None);
    }
    table.choice("quantization", "nf4")?;
    Ok(Some(Quantization::Nf4 { double_quantization: table.boolean("double_quantization", true)? }))
}

/// `[adapter]` of evaluate and serve documents.
pub(super) fn adapter_reference(reader: &Reader<'_>) -> Result<Option<AdapterReference>, DocumentError> {
    if !reader.has("adapter") {
        return Ok(None);
    }
    let table = reader.table("adapter");
    let found = table.required("source")?;
    let source = match parse_source(found.text()?) {
        Some(source @ (Source::Job { .. } | Source::File { .. })) => source,
        _ => return Err(found.bad_value()),
    };
    let base = match table.choice("base", "own")? {
        "full_precision" => AdapterBase::FullPrecision,
        _ => AdapterBase::Own,
    };
    Ok(Some(AdapterReference { source, base }))
}

/// Names end up in paths and messages, so they are plain.
pub(super) fn check_name(found: &Found<'_>, name: &str) -> Result<String, DocumentError> {
    if is_name(name) { Ok(name.to_owned()) } else { Err(found.bad_value()) }
}

pub(super) fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=64).contains(&name.len()) && name.chars().all(allowed) && !name.starts_with('.')
}

pub(super) fn bounded<'a>(tables: Vec<Table<'a>>, key: &str) -> Result<Vec<Table<'a>>, DocumentError> {
    match tables.get(TABLES_MAX) {
        None => Ok(tables),
        Some(extra) => Err(DocumentError::BadValue {
            line: extra.line(),
            key: key.to_owned(),
            found: format!("{} tables", tables.len()),
            expected: format!("at most {TABLES_MAX} tables"),
            nearest: None,
        }),
    }
}
