//! Strict parsing of what each kind of job has of its own.

use std::collections::BTreeSet;

use super::evaluate::{Bootstrap, Evaluate, Task, TaskKind};
use super::model::Quantization;
use super::parse::{adapter_reference, bounded, check_name, is_name, model, quantization};
use super::reader::{Found, Reader, Table};
use super::serve::{Api, Batch, Serve, Truncate};
use super::train::{
    Adapter, AdapterKind, Checkpoint, Data, Every, Loss, Optimizer, Schedule, ScheduleKind, Steps, Targets,
    Train, Warmup,
};
use super::{DocumentError, Workload};
use crate::unit::{Bytes, Span};

pub(super) fn parse(reader: &Reader<'_>) -> Result<Workload, DocumentError> {
    Ok(match reader.kind() {
        "train" => Workload::Train(Box::new(train(reader)?)),
        "evaluate" => Workload::Evaluate(Box::new(evaluate(reader)?)),
        _ => Workload::Serve(Box::new(serve(reader)?)),
    })
}

fn train(reader: &Reader<'_>) -> Result<Train, DocumentError> {
    let adapter = adapter(&reader.table("adapter"))?;
    let data = reader.table("data");
    Ok(Train {
        model: model(reader)?,
        data: Data {
            train: data.required("train")?.text()?.to_owned(),
            validation: data.text("validation")?,
            anchor_prompt: data.text("anchor_prompt")?,
            other_prompt: data.text("other_prompt")?,
        },
        loss: loss(&reader.table("loss"))?,
        optimizer: optimizer(&reader.table("optimizer"))?,
        adapter,
        schedule: schedule(&reader.table("schedule"))?,
        steps: steps(&reader.table("train"))?,
        checkpoint: checkpoint(&reader.table("checkpoint"))?,
        evaluate: tasks(reader)?,
    })
}

fn adapter(table: &Table<'_>) -> Result<Adapter, DocumentError> {
    const QUANTIZED: &[&str] = &["quantization", "double_quantization"];
    let kind = match table.required("kind")?.choice()? {
        "qlora" => {
            let nf4 = Quantization::Nf4 { double_quantization: true };
            AdapterKind::Qlora(quantization(table, Some(nf4))?.unwrap_or(nf4))
        }
        _ => {
            table.refuse(QUANTIZED, "kind = \"lora\"", "use kind = \"qlora\" for a quantized base")?;
            AdapterKind::Lora
        }
    };
    Ok(Adapter {
        kind,
        rank: table.count("rank", 8)?,
        alpha: table.number("alpha", 16.0)? as f32,
        dropout: table.number("dropout", 0.05)? as f32,
        rslora: table.boolean("rslora", false)?,
        targets: table.get("targets").map_or(Ok(Targets::AllLinear), |found| targets(&found))?,
    })
}

fn targets(found: &Found<'_>) -> Result<Targets, DocumentError> {
    if let Ok(text) = found.text() {
        return if text == "all-linear" { Ok(Targets::AllLinear) } else { Err(found.bad_value()) };
    }
    let names: Vec<String> = found.texts()?.into_iter().map(str::to_owned).collect();
    if names.is_empty() { Err(found.bad_value()) } else { Ok(Targets::Modules(names)) }
}

fn loss(table: &Table<'_>) -> Result<Loss, DocumentError> {
    const INFONCE: &[&str] = &["temperature", "symmetric", "in_batch_negatives", "false_negative_margin"];
    let kind = table.required("kind")?.choice()?;
    let beside = format!("kind = \"{kind}\"");
    let refuse = |names: &[&str], owner: &str| {
        table.refuse(names, &beside, &format!("take it out, or use kind = \"{owner}\""))
    };
    Ok(match kind {
        "cosent" => {
            refuse(INFONCE, "infonce")?;
            Loss::Cosent { scale: table.number("scale", 20.0)? as f32 }
        }
        "infonce" => {
            refuse(&["scale"], "cosent")?;
            let margin = table.get("false_negative_margin").map(|found| found.number()).transpose()?;
            Loss::Infonce {
                temperature: table.number("temperature", 0.05)? as f32,
                symmetric: table.boolean("symmetric", false)?,
                in_batch_negatives: table.boolean("in_batch_negatives", true)?,
                false_negative_margin: margin.map(|margin| margin as f32),
            }
        }
        _ => {
            refuse(&["scale"], "cosent")?;
            refuse(INFONCE, "infonce")?;
            Loss::CosineSimilarity
        }
    })
}

fn optimizer(table: &Table<'_>) -> Result<Optimizer, DocumentError> {
    table.choice("kind", "adamw")?;
    Ok(Optimizer {
        learning_rate: table.number("learning_rate", 1e-4)?,
        weight_decay: table.number("weight_decay", 0.01)?,
        beta1: table.number("beta1", 0.9)?,
        beta2: table.number("beta2", 0.999)?,
        epsilon: table.number("epsilon", 1e-8)?,
        max_gradient_norm: table.number("max_gradient_norm", 1.0)?,
    })
}

fn schedule(table: &Table<'_>) -> Result<Schedule, DocumentError> {
    let kind = match table.choice("kind", "linear")? {
        "cosine" => ScheduleKind::Cosine,
        "constant" => ScheduleKind::Constant,
        _ => ScheduleKind::Linear,
    };
    let warmup = table.get("warmup").map_or(Ok(Warmup::Ratio(0.0)), |found| warmup(&found))?;
    Ok(Schedule { kind, warmup })
}

fn warmup(found: &Found<'_>) -> Result<Warmup, DocumentError> {
    use toml::de::DeValue;
    match found.value() {
        DeValue::String(text) => counted(text, "step").map(Warmup::Steps).ok_or_else(|| found.bad_value()),
        DeValue::Integer(_) | DeValue::Float(_) => {
            let share = match found.value() {
                DeValue::Integer(share) => share.to_string().parse::<f64>().ok(),
                DeValue::Float(share) => share.as_str().parse().ok(),
                _ => None,
            };
            let share = share.filter(|share| (0.0..=1.0).contains(share));
            share.map(Warmup::Ratio).ok_or_else(|| found.bad_value())
        }
        _ => Err(found.wrong_type()),
    }
}

/// `100 steps` as 100 for the unit `step`.
fn counted(text: &str, unit: &str) -> Option<u64> {
    const COUNT_MAX: u64 = 1_000_000_000;
    let (count, found) = text.trim().split_once(' ')?;
    if found.trim().trim_end_matches('s') != unit {
        return None;
    }
    count.parse().ok().filter(|count| (1..=COUNT_MAX).contains(count))
}

fn steps(table: &Table<'_>) -> Result<Steps, DocumentError> {
    Ok(Steps {
        epochs: table.count("epochs", 1)?,
        max_steps: table.get("max_steps").map(|found| found.integer()).transpose()?,
        batch_size: table.count("batch_size", 32)?,
        accumulation_steps: table.count("accumulation_steps", 1)?,
        seed: table.unsigned("seed", 42)?,
        shuffle: table.boolean("shuffle", true)?,
        drop_last: table.boolean("drop_last", false)?,
        token_budget: table.count("token_budget", 16384)?,
        gradient_checkpointing: table
            .get("gradient_checkpointing")
            .map(|found| found.boolean())
            .transpose()?,
        log_every: table.unsigned("log_every", 10)?,
    })
}

fn checkpoint(table: &Table<'_>) -> Result<Checkpoint, DocumentError> {
    let every = match table.get("every") {
        None => Every::Steps(100),
        Some(found) => {
            let text = found.text()?;
            let steps = counted(text, "step").map(Every::Steps);
            let every = steps.or_else(|| counted(text, "epoch").map(Every::Epochs));
            every.ok_or_else(|| found.bad_value())?
        }
    };
    Ok(Checkpoint { every, keep: table.count("keep", 3)? })
}

fn evaluate(reader: &Reader<'_>) -> Result<Evaluate, DocumentError> {
    let bootstrap = reader.table("bootstrap");
    let absent = Bootstrap::default();
    let tasks = tasks(reader)?;
    if tasks.is_empty() {
        let remedy = "at least one `[[evaluate]]` table with `task` and `data`".to_owned();
        return Err(DocumentError::MissingKey { line: 1, key: "evaluate".to_owned(), remedy });
    }
    Ok(Evaluate {
        model: model(reader)?,
        quantization: quantization(&reader.table("model"), None)?,
        adapter: adapter_reference(reader)?,
        tasks,
        bootstrap: Bootstrap {
            resamples: bootstrap.count("resamples", absent.resamples)?,
            seed: bootstrap.unsigned("seed", absent.seed)?,
        },
    })
}

fn tasks(reader: &Reader<'_>) -> Result<Vec<Task>, DocumentError> {
    let mut names = BTreeSet::new();
    let mut tasks = Vec::new();
    for table in bounded(reader.tables("evaluate", "evaluate[]"), "evaluate")? {
        let task = task(&table)?;
        if !names.insert(task.name.clone()) {
            let line = table.get("name").map_or(table.line(), |found| found.line);
            return Err(DocumentError::DuplicateTask { line, name: task.name });
        }
        tasks.push(task);
    }
    Ok(tasks)
}

fn task(table: &Table<'_>) -> Result<Task, DocumentError> {
    let kind = match table.required("task")?.choice()? {
        "sts" => TaskKind::Sts,
        "pair_classification" => TaskKind::PairClassification,
        _ => TaskKind::Retrieval,
    };
    let data = table.required("data")?.text()?.to_owned();
    let name = match table.get("name") {
        Some(found) => check_name(&found, found.text()?)?,
        None => name_of_data(table, &data)?,
    };
    Ok(Task {
        kind,
        name,
        data,
        query_prompt: table.text("query_prompt")?,
        document_prompt: table.text("document_prompt")?,
    })
}

/// `../stsb/test.jsonl` → `test`, with what names cannot have replaced.
fn name_of_data(table: &Table<'_>, data: &str) -> Result<String, DocumentError> {
    let last = data.trim_end_matches('/').rsplit('/').next().unwrap_or(data);
    let stem = last.rsplit_once('.').map_or(last, |(stem, _)| stem);
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' };
    let name: String = stem.chars().take(64).map(plain).collect();
    if is_name(&name) {
        return Ok(name);
    }
    // Nothing to make a name from: ask for one.
    table.required("name").map(|_| name)
}

fn serve(reader: &Reader<'_>) -> Result<Serve, DocumentError> {
    let api = reader.table("api");
    let batch = reader.table("batch");
    let listen = match api.get("listen") {
        None => "127.0.0.1:8080".to_owned(),
        Some(found) => {
            let text = found.text()?;
            let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
            let port = port.and_then(|(_, port)| port.parse::<u16>().ok());
            port.map(|_| text.to_owned()).ok_or_else(|| found.bad_value())?
        }
    };
    let request_tokens_max = api.count("request_tokens_max", 300_000)?;
    let queue_tokens_max = batch.count("queue_tokens_max", 1 << 20)?;
    if queue_tokens_max < request_tokens_max {
        // One of them was written: the defaults go together.
        let found = batch.get("queue_tokens_max").or_else(|| api.get("request_tokens_max"));
        return Err(DocumentError::Conflict {
            line: found.map_or(batch.line(), |found| found.line),
            key: format!("batch.queue_tokens_max = {queue_tokens_max}"),
            beside: format!("`api.request_tokens_max = {request_tokens_max}`"),
            remedy: "raise the one or lower the other: the queue has to hold the largest request".to_owned(),
        });
    }
    Ok(Serve {
        model: model(reader)?,
        quantization: quantization(&reader.table("model"), None)?,
        adapter: adapter_reference(reader)?,
        api: Api {
            listen,
            served_name: api.text("served_name")?,
            keys_file: api.text("keys_file")?,
            inputs_max: api.count("inputs_max", 2048)?,
            request_tokens_max,
            body_max: api.get("body_max").map_or(Ok(Bytes::from_mebibytes(32)), |found| found.size())?,
            truncate: match api.choice("truncate", "error")? {
                "right" => Truncate::Right,
                _ => Truncate::Error,
            },
            prompt: api.text("prompt")?,
        },
        batch: Batch {
            token_budget: batch.count("token_budget", 4096)?,
            queue_tokens_max,
            drain: batch.get("drain").map_or(Ok(Span::from_seconds(30)), |found| found.duration())?,
        },
    })
}
