//! What a workload says: log lines to its output, everything else to `events.jsonl`.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use motley_scheduler_core::wire::agent::{AttemptPhase, Progress};

use super::events::RunnerEvent;

/// Progress comes from inside of loops; more often than this nobody looks.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// Clones write to the same place. Nothing here fails: a job does not end because nobody can hear it.
#[derive(Debug, Clone)]
pub struct Reporter {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    events: File,
    progress_at: Option<Instant>,
    progress_activity: String,
}

impl Reporter {
    /// Appends to `path`.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn open(path: &Path) -> io::Result<Self> {
        let events = File::options().create(true).append(true).open(path)?;
        let shared = Shared { events, progress_at: None, progress_activity: String::new() };
        Ok(Reporter { shared: Arc::new(Mutex::new(shared)) })
    }

    /// A line (or several) of the job's log.
    pub fn log(&self, text: &str) {
        let mut line = text.trim_end().to_owned();
        line.push('\n');
        let mut output = io::stdout().lock();
        let _ = output.write_all(line.as_bytes());
        let _ = output.flush();
    }

    /// Where the job stands. Too frequent ones are dropped, but never the first of an activity or the last of all.
    pub fn progress(&self, progress: Progress) {
        let mut shared = self.lock();
        let now = Instant::now();
        let soon = shared.progress_at.is_some_and(|at| now.duration_since(at) < PROGRESS_EVERY);
        if soon && shared.progress_activity == progress.activity && progress.total != Some(progress.done) {
            return;
        }
        shared.progress_at = Some(now);
        shared.progress_activity.clone_from(&progress.activity);
        shared.append(&RunnerEvent::Progress { progress });
    }

    /// The job's phase changed: running, checkpointing.
    pub fn phase(&self, phase: AttemptPhase) {
        self.lock().append(&RunnerEvent::Phase { phase });
    }

    /// `checkpoints/step-<step>` was renamed into place.
    pub fn checkpoint(&self, step: u64) {
        self.lock().append(&RunnerEvent::Checkpoint { step });
    }

    /// Where the job can be reached.
    pub fn endpoint(&self, endpoint: String) {
        self.lock().append(&RunnerEvent::Endpoint { endpoint });
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn append(&mut self, event: &RunnerEvent) {
        let Ok(mut line) = serde_json::to_vec(event) else { return };
        line.push(b'\n');
        // One write a line: a reader sees whole lines, or a last one without its end.
        if let Err(error) = self.events.write_all(&line) {
            tracing::warn!(%error, "event not written");
        }
    }
}
