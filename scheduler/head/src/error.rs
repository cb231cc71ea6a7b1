//! Why a scheduler does not start, or stops.

use std::path::PathBuf;

use motley_scheduler_link::LinkError;

#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    #[error(
        "another scheduler uses {}\nhint: stop it, or choose another folder with --state", path.display()
    )]
    InUse { path: PathBuf },
    #[error("{}: {source}\nhint: the state folder has to be writable and on a disk with room", path.display())]
    State { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}", path.display())]
    Store { path: PathBuf, source: rusqlite::Error },
    #[error("{}: row {row} of the journal cannot be read: {reason}\nhint: {hint}", path.display())]
    Damaged { path: PathBuf, row: i64, reason: String, hint: &'static str },
    #[error(
        "{}: written by a newer scheduler (format {found}, this one knows {known})\n\
         hint: start the newer program", path.display()
    )]
    TooNew { path: PathBuf, found: i64, known: i64 },
    #[error(
        "the journal is not one history: {reason}\nhint: keep the state folder and restore journal.sqlite from a copy"
    )]
    History { reason: String },
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A thread or task of the scheduler is gone.
    #[error("the scheduler's {what} ended unexpectedly: {reason}")]
    Ended { what: &'static str, reason: String },
}

impl HeadError {
    pub(crate) fn state(path: &std::path::Path, source: std::io::Error) -> Self {
        HeadError::State { path: path.to_owned(), source }
    }
}
