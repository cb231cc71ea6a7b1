//! Jobs come in, and are called off.

use std::collections::BTreeSet;

use super::machine::Cluster;
use super::state::JobPhase;
use super::{Action, Change, Handled, Submission, Ticket};
use crate::artifact::FileEntry;
use crate::document::{Choice, Document, FileRole, Memory, Resources, Workload};
use crate::id::JobId;
use crate::unit::Bytes;
use crate::wire::agent::{Outcome, ToAgent};
use crate::wire::client::{Refusal, RefusalKind};

/// More jobs than this do not wait: the next is refused, so that a runaway script cannot fill the scheduler.
pub const WAITING_MAX: usize = 20_000;

/// Document and file list together, so that an assignment fits into a message to an agent (4 MiB).
const SUBMISSION_BYTES_MAX: usize = 3 << 20;

impl Submission {
    /// What the scheduler keeps of a job, from the user's text and the stored files.
    ///
    /// # Errors
    /// The text is no job document, asks for something that is not supported, or files or figures do not match it.
    pub fn new(
        document: String,
        files: Vec<FileEntry>,
        memory: Vec<Bytes>,
        owner: &str,
    ) -> Result<Submission, Refusal> {
        let parsed = Document::parse(&document)
            .map_err(|error| Refusal::from_text(RefusalKind::Usage, &error.to_string()))?;
        check_size(&document, &files)?;
        check_resources(&parsed.resources, &memory)?;
        check_files(&parsed, &files)?;
        Ok(Submission {
            owner: owner.to_owned(),
            name: parsed.name.clone(),
            kind: parsed.kind().to_owned(),
            priority: parsed.priority,
            inputs: parsed.inputs(),
            checkpoints_kept: match &parsed.workload {
                Workload::Train(train) => train.checkpoint.keep,
                Workload::Evaluate(_) | Workload::Serve(_) => 0,
            },
            resources: parsed.resources,
            memory,
            files,
            document,
        })
    }
}

impl Cluster {
    pub(super) fn submit(&mut self, out: &mut Handled, ticket: Ticket, submission: Submission) {
        let refusal = check_resources(&submission.resources, &submission.memory)
            .and_then(|()| self.check_inputs(&submission.inputs))
            .and_then(|()| self.check_room())
            .err();
        if let Some(refusal) = refusal {
            return out.refuse(ticket, refusal);
        }
        let job = JobId(self.state.jobs.last_key_value().map_or(1, |(last, _)| last.0 + 1));
        let mut submission = submission;
        let choices: Vec<Choice> = submission.resources.iter_mut().map(Resources::take_choice).collect();
        self.record(out, Change::JobAdded { job, submission, at: self.live.now });
        if choices.iter().any(|choice| *choice != Choice::default()) {
            self.record(out, Change::ChoiceAdded { job, choices });
        }
        out.actions.push(Action::Submitted { ticket, job });
        self.live.look_again = true;
    }

    pub(super) fn cancel(&mut self, out: &mut Handled, ticket: Ticket, job: JobId) {
        let now = self.live.now;
        let Some(known) = self.state.jobs.get(&job) else {
            let refusal = Refusal::new(RefusalKind::NotFound, format!("there is no job {job}"));
            return out.refuse(ticket, refusal.with_hint("`ctl jobs` lists them"));
        };
        let asked_before = known.cancel_asked.is_some();
        match &known.phase {
            JobPhase::Ended { outcome: Outcome::Cancelled, .. } => {}
            JobPhase::Ended { outcome, .. } => {
                let how = if *outcome == Outcome::Succeeded { "succeeded" } else { "failed" };
                let message = format!("job {job} has already {how}");
                return out.refuse(ticket, Refusal::new(RefusalKind::Failed, message));
            }
            JobPhase::Waiting { .. } => {
                self.record(out, Change::CancelAsked { job, at: now });
                self.end_job(out, job, Outcome::Cancelled, None);
            }
            JobPhase::Active => {
                if !asked_before {
                    self.record(out, Change::CancelAsked { job, at: now });
                }
                self.stop(out, job);
                self.job_changed(out, job);
            }
        }
        out.actions.push(Action::Cancelled { ticket, job });
    }

    /// Tells the agent of the job's attempt, if it can be reached, to stop it. Said again when it does not happen.
    pub(super) fn stop(&mut self, out: &mut Handled, job: JobId) {
        let Some((id, attempt)) = self.state.jobs.get(&job).and_then(|known| known.current(job)) else {
            return;
        };
        let reachable = self.live.nodes.get(&attempt.node).is_some_and(|node| node.reported);
        if let (true, Some(live)) = (reachable, self.live.attempts.get_mut(&id)) {
            live.stop_sent = Some(self.live.now);
            let message = ToAgent::Stop { attempt: id, epoch: attempt.epoch, grace: self.clocks.stop_grace };
            out.tell(attempt.node, message);
            self.due_by(self.live.now.after(self.clocks.stop_grace));
        }
    }

    fn check_inputs(&self, inputs: &[JobId]) -> Result<(), Refusal> {
        for job in inputs {
            match self.state.jobs.get(job).map(|known| &known.phase) {
                None => {
                    let message = format!("the document names job {job}, which does not exist");
                    return Err(
                        Refusal::new(RefusalKind::NotFound, message).with_hint("`ctl jobs` lists them")
                    );
                }
                Some(JobPhase::Ended { outcome: Outcome::Failed { .. } | Outcome::Cancelled, .. }) => {
                    let message = format!("the document names job {job}, which left no result");
                    return Err(Refusal::new(RefusalKind::Usage, message));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn check_room(&self) -> Result<(), Refusal> {
        if self.state.waiting.len() < WAITING_MAX {
            return Ok(());
        }
        let message = format!("{WAITING_MAX} jobs are waiting already");
        Err(Refusal::new(RefusalKind::Failed, message).with_hint("submit again when some have been placed"))
    }
}

fn check_size(document: &str, files: &[FileEntry]) -> Result<(), Refusal> {
    const ENTRY_BYTES: usize = 48;
    let size = document.len() + files.iter().map(|file| file.path.len() + ENTRY_BYTES).sum::<usize>();
    if size <= SUBMISSION_BYTES_MAX {
        return Ok(());
    }
    let (size, most) = (Bytes(size as u64), Bytes(SUBMISSION_BYTES_MAX as u64));
    let message = format!("document and list of {} files take {size}, {most} are allowed", files.len());
    Err(Refusal::new(RefusalKind::Usage, message).with_hint("use fewer, larger files"))
}

fn check_resources(resources: &[Resources], memory: &[Bytes]) -> Result<(), Refusal> {
    if resources.is_empty() || resources.len() != memory.len() {
        let (asked, given) = (resources.len(), memory.len());
        let message = format!("{given} memory figures for {asked} alternatives of `resources`");
        return Err(Refusal::new(RefusalKind::Usage, message));
    }
    for (resources, memory) in resources.iter().zip(memory) {
        if resources.devices.min > 1 {
            let message = format!("the job asks for {} devices, one is supported now", resources.devices.min);
            let refusal = Refusal::new(RefusalKind::Usage, message);
            return Err(refusal.with_hint("set `devices = 1` under `[resources]`, or leave it out"));
        }
        let agrees = match resources.memory {
            Memory::Auto => memory.0 > 0,
            Memory::Exact(exact) => *memory == exact && memory.0 > 0,
        };
        if !agrees {
            let message = format!("a memory figure of {memory} does not go with `resources.memory`");
            return Err(Refusal::new(RefusalKind::Usage, message));
        }
    }
    Ok(())
}

/// Every file that the document names is there, and no other.
fn check_files(document: &Document, files: &[FileEntry]) -> Result<(), Refusal> {
    let refuse = |message: String| Err(Refusal::new(RefusalKind::Usage, message));
    let mut paths = BTreeSet::new();
    for file in files {
        if !is_plain_path(&file.path) {
            return refuse(format!("`{}` is no path of an input folder", file.path));
        }
        if !paths.insert(file.path.as_str()) {
            return refuse(format!("`{}` is listed twice", file.path));
        }
    }
    for reference in document.files() {
        let path = reference.input_path();
        let found = match reference.role {
            FileRole::File => usize::from(paths.remove(path.as_str())),
            FileRole::Folder => {
                let before = paths.len();
                let below = |file: &&str| file.strip_prefix(&path).is_some_and(|rest| rest.starts_with('/'));
                paths.retain(|file| !below(file));
                before - paths.len()
            }
        };
        if found == 0 {
            return refuse(format!("`{}` names `{}`, which was not uploaded", reference.key, reference.path));
        }
    }
    match paths.first() {
        None => Ok(()),
        Some(path) => refuse(format!("`{path}` was uploaded, but the document does not name it")),
    }
}

/// Relative, `/`-separated, every part an ordinary name.
fn is_plain_path(path: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty() && part != "." && part != ".." && !part.chars().any(|c| c.is_control() || c == '\\')
    };
    path.len() <= 1024 && path.split('/').all(plain)
}
