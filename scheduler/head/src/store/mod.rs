//! The journal: every decision, in order. What a store has to do, and the thread that makes it do so.
//!
//! One batch is one transaction: either all of its changes are there after a crash or none is. Whoever asked is
//! answered, and every action is performed, only after the commit.

mod sqlite;

use std::path::Path;

use motley_scheduler_core::cluster::Change;
use motley_scheduler_core::unit::Moment;
use tokio::sync::{mpsc, oneshot};

use crate::HeadError;
use crate::lock::FolderLock;

pub(crate) use sqlite::Sqlite;

/// What one transaction adds.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub changes: Vec<Change>,
    /// The clock goes on from here after a restart.
    pub now: Moment,
}

/// What a store holds.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    pub changes: Vec<Change>,
    pub clock: Moment,
}

/// A durable journal. SQLite today; the same schema on PostgreSQL follows behind this.
pub(crate) trait Store: Send + 'static {
    /// Everything, in the order of writing.
    fn load(&mut self) -> Result<Stored, HeadError>;
    /// Durable when it returns; nothing is written when it fails.
    fn commit(&mut self, batch: &Batch) -> Result<(), HeadError>;
}

/// Batches that wait for the writer: the engine waits for each, so there is one at a time.
const QUEUE: usize = 2;

/// A batch, and whether it is stored.
pub(crate) type Committed = (Batch, Result<(), HeadError>);

enum Command {
    Load(oneshot::Sender<Result<Stored, HeadError>>),
    Commit(Batch, oneshot::Sender<Result<Committed, HeadError>>),
}

/// The store's thread, which holds the folder's lock: when every clone is dropped, it ends after what it has in
/// hand, and only then may another scheduler have the folder.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    commands: mpsc::Sender<Command>,
}

impl Writer {
    /// Opens the journal of a locked state folder on a thread of its own.
    pub(crate) fn open(state: &Path, lock: FolderLock) -> Result<Writer, HeadError> {
        Writer::start(Sqlite::open(&state.join("journal.sqlite"))?, lock)
    }

    pub(crate) fn start(mut store: impl Store, lock: FolderLock) -> Result<Writer, HeadError> {
        let (commands, mut queue) = mpsc::channel(QUEUE);
        let run = move || {
            while let Some(command) = queue.blocking_recv() {
                // An asker that is gone needs no answer.
                match command {
                    Command::Load(answer) => drop(answer.send(store.load())),
                    Command::Commit(batch, answer) => {
                        let result = store.commit(&batch);
                        drop(answer.send(Ok((batch, result))));
                    }
                }
            }
            drop(store);
            drop(lock);
        };
        std::thread::Builder::new()
            .name("journal".into())
            .spawn(run)
            .map_err(|error| HeadError::Ended { what: "journal thread", reason: error.to_string() })?;
        Ok(Writer { commands })
    }

    pub(crate) async fn load(&self) -> Result<Stored, HeadError> {
        let (answer, answered) = oneshot::channel();
        self.ask(Command::Load(answer), answered).await
    }

    /// Hands the batch back with what became of it.
    ///
    /// # Errors
    /// The thread is gone.
    pub(crate) async fn commit(&self, batch: Batch) -> Result<Committed, HeadError> {
        let (answer, answered) = oneshot::channel();
        self.ask(Command::Commit(batch, answer), answered).await
    }

    async fn ask<T>(
        &self,
        command: Command,
        answered: oneshot::Receiver<Result<T, HeadError>>,
    ) -> Result<T, HeadError> {
        let gone = || HeadError::Ended { what: "journal thread", reason: "it panicked".into() };
        self.commands.send(command).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}
