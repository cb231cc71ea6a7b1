//! Who waits for news of a job: watches and followed logs. News carry nothing; whoever wakes looks for himself.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use motley_scheduler_core::id::JobId;
use tokio::sync::watch;

#[derive(Debug, Default)]
pub(crate) struct Watchers {
    jobs: Mutex<BTreeMap<JobId, watch::Sender<()>>>,
}

impl Watchers {
    /// Wakes for everything that happens to `job` from now on.
    pub(crate) fn subscribe(&self, job: JobId) -> watch::Receiver<()> {
        self.jobs().entry(job).or_insert_with(|| watch::channel(()).0).subscribe()
    }

    pub(crate) fn notify(&self, job: JobId) {
        let mut jobs = self.jobs();
        let Some(sender) = jobs.get(&job) else { return };
        if sender.receiver_count() == 0 {
            jobs.remove(&job);
        } else {
            sender.send_replace(());
        }
    }

    fn jobs(&self) -> std::sync::MutexGuard<'_, BTreeMap<JobId, watch::Sender<()>>> {
        // Every change of the map is one call; a panic elsewhere leaves it whole.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_wake_the_watchers_of_their_job_and_leave_nothing_behind() {
        let watchers = Watchers::default();
        let (mut one, other) = (watchers.subscribe(JobId(1)), watchers.subscribe(JobId(2)));
        watchers.notify(JobId(1));
        watchers.notify(JobId(3));
        assert!(one.has_changed().unwrap());
        assert!(!other.has_changed().unwrap());
        one.mark_unchanged();
        assert!(!one.has_changed().unwrap());
        drop((one, other));
        watchers.notify(JobId(1));
        assert_eq!(watchers.jobs().len(), 1);
    }
}
