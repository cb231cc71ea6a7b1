//! Jobs and nodes for people and for programs. The JSON schema here is stable: keys are only added.
//!
//! Times are milliseconds since the Unix epoch, sizes bytes, hashes hexadecimal; what is not known is null.

use motley_scheduler_core::artifact::{ArtifactKind, ArtifactRef};
use motley_scheduler_core::id::NodeId;
use motley_scheduler_core::unit::{Moment, Span};
use motley_scheduler_core::wire::agent::{DeviceDetails, Progress};
use motley_scheduler_core::wire::client::{AttemptView, DeviceView, JobState, JobView, NodeState, NodeView};
use serde_json::{Value, json};

use super::table::{Table, facts};

pub fn state_name(state: JobState) -> &'static str {
    match state {
        JobState::Queued => "queued",
        JobState::Placing => "placing",
        JobState::Starting => "starting",
        JobState::Running => "running",
        JobState::Checkpointing => "checkpointing",
        JobState::Succeeded => "succeeded",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
    }
}

fn node_state_name(state: NodeState) -> &'static str {
    match state {
        NodeState::Ready => "ready",
        NodeState::Suspect => "suspect",
        NodeState::Lost => "lost",
    }
}

/// The schema of a job in `--json`.
pub fn job_json(job: &JobView) -> Value {
    json!({
        "job": job.job.0,
        "name": job.name,
        "kind": job.kind,
        "priority": job.priority,
        "state": state_name(job.state),
        "waiting": job.waiting,
        "reason": job.reason.map(|reason| reason.name()),
        "message": job.message,
        "submitted_ms": job.submitted.0,
        "started_ms": job.started.map(|at| at.0),
        "ended_ms": job.ended.map(|at| at.0),
        "attempts": job.attempts.iter().map(attempt_json).collect::<Vec<_>>(),
        "progress": job.progress.as_ref().map(progress_json),
        "endpoint": job.endpoint,
        "output": job.output.as_ref().map(artifact_json),
        "checkpoint": job.checkpoint.as_ref().map(artifact_json),
    })
}

fn attempt_json(attempt: &AttemptView) -> Value {
    json!({
        "attempt": attempt.attempt.number,
        "node": attempt.node.0,
        "device": attempt.device,
        "backend": attempt.backend.name(),
        "leased_ms": attempt.leased.0,
        "ended_ms": attempt.ended.map(|at| at.0),
        "reason": attempt.reason.map(|reason| reason.name()),
        "resumed_from_step": attempt.resumed_from,
    })
}

fn progress_json(progress: &Progress) -> Value {
    json!({
        "activity": progress.activity,
        "done": progress.done,
        "total": progress.total,
        "unit": progress.unit,
        "loss": progress.loss,
        "tokens_per_second": progress.tokens_per_second,
        "seconds_left": progress.seconds_left,
    })
}

pub fn artifact_json(artifact: &ArtifactRef) -> Value {
    let (kind, step) = match artifact.kind {
        ArtifactKind::Checkpoint { step } => ("checkpoint", Some(step)),
        ArtifactKind::Output => ("output", None),
    };
    json!({ "kind": kind, "step": step, "manifest": artifact.manifest.to_string() })
}

/// The schema of a node in `--json`.
pub fn node_json(node: &NodeView, details: &[(NodeId, Vec<DeviceDetails>)]) -> Value {
    let device = |device: &DeviceView| device_json(device, details_of(node, device, details));
    json!({
        "node": node.node.0,
        "name": node.name,
        "state": node_state_name(node.state),
        "last_seen_ms": node.last_seen.0,
        "build": node.build,
        "cores": node.cores,
        "memory_bytes": node.memory.0,
        "devices": node.devices.iter().map(device).collect::<Vec<_>>(),
    })
}

/// What the node's agent has told of a device beside its facts.
fn details_of<'a>(
    node: &NodeView,
    device: &DeviceView,
    details: &'a [(NodeId, Vec<DeviceDetails>)],
) -> Option<&'a DeviceDetails> {
    let (_, devices) = details.iter().find(|(id, _)| *id == node.node)?;
    devices.iter().find(|details| details.index == device.facts.index)
}

/// `3 (cuda:1)`: position among the node's devices, and index among those of its backend.
fn shown_device(device: &DeviceView, details: Option<&DeviceDetails>) -> String {
    let (position, backend) = (device.facts.index, device.facts.backend.name());
    match details {
        Some(details) => format!("{position} ({backend}:{})", details.backend_index),
        None => format!("{position} ({backend})"),
    }
}

fn device_json(device: &DeviceView, details: Option<&DeviceDetails>) -> Value {
    json!({
        "device": device.facts.index,
        "backend": device.facts.backend.name(),
        "name": device.facts.name,
        "memory_bytes": device.facts.memory.0,
        "memory_leased_bytes": device.memory_leased.0,
        "backend_index": details.map(|details| details.backend_index),
        "driver": details.map(|details| details.driver.clone()),
        "capability": details.map(|details| details.capability.clone()),
        "precisions": details.map(|details| details.precisions.clone()),
        "is_software": details.map(|details| details.is_software),
        "same_card_as": details.and_then(|details| details.same_card),
        "gemm_flops_per_s": details.and_then(|details| details.gemm),
        "nf4_flops_per_s": details.and_then(|details| details.nf4),
        "bandwidth_bytes_per_s": details.and_then(|details| details.bandwidth),
        "attempts": device.attempts.iter().map(|attempt| attempt.to_string()).collect::<Vec<_>>(),
    })
}

pub fn jobs_table(jobs: &[JobView], now: Moment) -> String {
    let mut table = Table::new(&["JOB", "NAME", "KIND", "STATE", "TRIES", "TIME", "NOTE"], &[0, 4, 5]);
    for job in jobs {
        table.row(vec![
            job.job.to_string(),
            job.name.clone(),
            job.kind.clone(),
            state_name(job.state).to_owned(),
            job.attempts.len().to_string(),
            running_time(job, now).map(duration).unwrap_or_default(),
            note(job),
        ]);
    }
    if table.is_empty() { "no jobs\n".to_owned() } else { table.render() }
}

/// What stands last in a line about a job: why it waits, how far it is, why it failed.
fn note(job: &JobView) -> String {
    if let Some(waiting) = &job.waiting {
        return one_line(waiting);
    }
    match (job.state, job.reason, &job.progress) {
        (JobState::Failed, Some(reason), _) => {
            let message = job.message.as_deref().map(one_line).unwrap_or_default();
            format!("{reason}: {message}")
        }
        (state, _, Some(progress)) if !state.has_ended() => progress_line(progress),
        _ => job.endpoint.clone().filter(|_| !job.state.has_ended()).unwrap_or_default(),
    }
}

fn one_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn running_time(job: &JobView, now: Moment) -> Option<Span> {
    job.started.map(|started| job.ended.unwrap_or(now).since(started))
}

/// `training 40/120 step, loss 0.1234, 5210 tokens/s, 1m 20s left`.
pub fn progress_line(progress: &Progress) -> String {
    let mut parts = Vec::new();
    match progress.total {
        Some(total) => {
            parts.push(format!("{} {}/{total} {}", progress.activity, progress.done, progress.unit))
        }
        None if progress.done > 0 => {
            parts.push(format!("{} {} {}", progress.activity, progress.done, progress.unit));
        }
        None => parts.push(progress.activity.clone()),
    }
    parts.extend(progress_figures(progress));
    parts.join(", ")
}

/// Loss, speed and time left, as far as they are known.
pub fn progress_figures(progress: &Progress) -> Vec<String> {
    let loss = progress.loss.map(|loss| format!("loss {loss:.4}"));
    let speed = progress.tokens_per_second.map(|speed| format!("{speed:.0} tokens/s"));
    let left = progress
        .seconds_left
        .filter(|seconds| seconds.is_finite() && *seconds >= 0.0)
        .map(|seconds| format!("{} left", duration(Span { milliseconds: (seconds * 1000.0) as u64 })));
    [loss, speed, left].into_iter().flatten().collect()
}

pub fn job_text(job: &JobView, now: Moment) -> String {
    let mut pairs = vec![
        ("job", job.job.to_string()),
        ("name", job.name.clone()),
        ("kind", job.kind.clone()),
        ("state", state_name(job.state).to_owned()),
    ];
    let mut optional = |key, value: Option<String>| pairs.extend(value.map(|value| (key, value)));
    optional("waiting", job.waiting.clone());
    optional("reason", job.reason.map(|reason| reason.to_string()));
    optional("message", job.message.clone());
    optional("time", running_time(job, now).map(duration));
    optional("progress", job.progress.as_ref().filter(|_| !job.state.has_ended()).map(progress_line));
    optional("endpoint", job.endpoint.clone());
    optional("output", job.output.map(|output| output.manifest.to_string()));
    optional("checkpoint", job.checkpoint.as_ref().map(checkpoint_text));
    let mut text = facts(&pairs);
    if !job.attempts.is_empty() {
        text.push('\n');
        text.push_str(&attempts_table(job, now));
    }
    text
}

fn checkpoint_text(artifact: &ArtifactRef) -> String {
    match artifact.kind {
        ArtifactKind::Checkpoint { step } => format!("step {step}, {}", artifact.manifest),
        ArtifactKind::Output => artifact.manifest.to_string(),
    }
}

/// How an attempt ended; only the last one can have been cancelled, with its job.
fn end_name(job: &JobView, attempt: &AttemptView) -> &'static str {
    let is_last = job.attempts.last().is_some_and(|last| last.attempt == attempt.attempt);
    match (attempt.ended, attempt.reason) {
        (None, _) => "",
        (Some(_), Some(reason)) => reason.name(),
        (Some(_), None) if is_last && job.state == JobState::Cancelled => "cancelled",
        (Some(_), None) => "done",
    }
}

fn attempts_table(job: &JobView, now: Moment) -> String {
    let mut table = Table::new(&["ATTEMPT", "NODE", "DEVICE", "TIME", "FROM STEP", "END"], &[0, 1, 3, 4]);
    for attempt in &job.attempts {
        table.row(vec![
            attempt.attempt.number.to_string(),
            attempt.node.to_string(),
            // Which of the node's devices: `ctl nodes` says which of its backend's that is.
            format!("{} ({})", attempt.device, attempt.backend.name()),
            duration(attempt.ended.unwrap_or(now).since(attempt.leased)),
            attempt.resumed_from.map(|step| step.to_string()).unwrap_or_default(),
            end_name(job, attempt).to_owned(),
        ]);
    }
    table.render()
}

pub fn nodes_table(nodes: &[NodeView], details: &[(NodeId, Vec<DeviceDetails>)], now: Moment) -> String {
    let header = ["NODE", "NAME", "STATE", "SEEN", "DEVICE", "MEMORY", "LEASED", "ATTEMPTS", "WHAT"];
    let mut table = Table::new(&header, &[0, 3, 5, 6]);
    for node in nodes {
        let lead = |first: bool| match first {
            true => vec![
                node.node.to_string(),
                node.name.clone(),
                node_state_name(node.state).to_owned(),
                duration(now.since(node.last_seen)),
            ],
            false => vec![String::new(); 4],
        };
        if node.devices.is_empty() {
            table.row([lead(true), vec![String::new(); 5]].concat());
        }
        for (index, device) in node.devices.iter().enumerate() {
            let attempts: Vec<String> = device.attempts.iter().map(ToString::to_string).collect();
            let cells = vec![
                shown_device(device, details_of(node, device, details)),
                device.facts.memory.to_string(),
                device.memory_leased.to_string(),
                attempts.join(" "),
                device.facts.name.clone(),
            ];
            table.row([lead(index == 0), cells].concat());
        }
    }
    if table.is_empty() { "no nodes\n".to_owned() } else { table.render() }
}

/// `45s`, `3m 20s`, `2h 5m`, `4d 3h`: two units at most.
pub fn duration(span: Span) -> String {
    let seconds = span.milliseconds / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units_at_most() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (200, "3m 20s"), (7500, "2h 5m"), (100_000, "1d 3h")]
        {
            assert_eq!(duration(Span::from_seconds(seconds)), text);
        }
    }

    #[test]
    fn progress_says_what_is_known() {
        let mut progress = Progress { activity: "downloading model".into(), ..Progress::default() };
        assert_eq!(progress_line(&progress), "downloading model");
        progress = Progress {
            activity: "training".into(),
            done: 40,
            total: Some(120),
            unit: "step".into(),
            loss: Some(0.12344),
            tokens_per_second: Some(5210.4),
            seconds_left: Some(80.2),
        };
        assert_eq!(progress_line(&progress), "training 40/120 step, loss 0.1234, 5210 tokens/s, 1m 20s left");
    }
}
