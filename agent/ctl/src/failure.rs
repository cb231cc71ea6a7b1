//! How a command ends badly: message, hint and exit code. Every error of every crate becomes a [`Failure`] here.

use std::fmt;
use std::process::ExitCode;

use motley_scheduler_core::wire::client::{Refusal, RefusalKind};

/// What the exit code says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 1: the job failed or was cancelled, or a local command could not do its work.
    Failed,
    /// 2: the command line or the document cannot be used as it stands.
    Usage,
    /// 3: no such job, artifact or file.
    NotFound,
    /// 4: the certificate does not allow it, or was refused.
    Denied,
    /// 5: the scheduler does not answer.
    Unreachable,
    /// 130: ended by SIGINT (Ctrl-C).
    Interrupted,
    /// 143: ended by SIGTERM.
    Terminated,
}

/// A command that did not do what it was asked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub exit: Exit,
    /// A lowercase fragment with the values; may have several lines.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Exit {
    pub fn code(self) -> u8 {
        match self {
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::NotFound => 3,
            Exit::Denied => 4,
            Exit::Unreachable => 5,
            // As shells tell it: 128 and the signal's number.
            Exit::Interrupted => 130,
            Exit::Terminated => 143,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Exit::Failed => "failed",
            Exit::Usage => "usage",
            Exit::NotFound => "not_found",
            Exit::Denied => "denied",
            Exit::Unreachable => "unreachable",
            Exit::Interrupted => "interrupted",
            Exit::Terminated => "terminated",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}

impl Failure {
    /// Errors of our crates carry their remedy as lines `hint: ...` behind the message.
    pub fn new(exit: Exit, error: impl fmt::Display) -> Self {
        let text = error.to_string();
        let (hints, lines): (Vec<&str>, Vec<&str>) =
            text.lines().partition(|line| line.trim_start().starts_with("hint:"));
        let hints: Vec<&str> =
            hints.iter().map(|line| line.trim_start().trim_start_matches("hint:").trim()).collect();
        let hint = (!hints.is_empty()).then(|| hints.join("\n"));
        Failure { exit, message: lines.join("\n"), hint }
    }

    pub fn usage(error: impl fmt::Display) -> Self {
        Failure::new(Exit::Usage, error)
    }

    pub fn failed(error: impl fmt::Display) -> Self {
        Failure::new(Exit::Failed, error)
    }

    pub fn not_found(error: impl fmt::Display) -> Self {
        Failure::new(Exit::NotFound, error)
    }

    pub fn unreachable(error: impl fmt::Display) -> Self {
        Failure::new(Exit::Unreachable, error)
    }

    /// Adds a remedy where the error has none of its own.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// Says in front what was being done: `cannot read train.toml: ...`.
    pub fn while_doing(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let exit = match refusal.kind {
            RefusalKind::Usage => Exit::Usage,
            RefusalKind::NotFound => Exit::NotFound,
            RefusalKind::Denied => Exit::Denied,
            RefusalKind::Failed => Exit::Failed,
        };
        let failure = Failure::new(exit, refusal.message);
        match refusal.hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

/// `error: ...` and a line `hint: ...` for each remedy.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        let hints = self.hint.as_deref().unwrap_or_default();
        hints.lines().try_for_each(|line| write!(f, "\nhint: {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_of_an_error_become_the_hint_of_the_failure() {
        let failure = Failure::usage("line 3: unknown key `epoch`\nhint: nearest known key: `epochs`");
        assert_eq!(failure.message, "line 3: unknown key `epoch`");
        assert_eq!(failure.hint.as_deref(), Some("nearest known key: `epochs`"));
        assert_eq!(
            failure.to_string(),
            "error: line 3: unknown key `epoch`\nhint: nearest known key: `epochs`"
        );
    }

    #[test]
    fn refusals_keep_their_exit_code() {
        let cases = [
            (RefusalKind::Failed, 1),
            (RefusalKind::Usage, 2),
            (RefusalKind::NotFound, 3),
            (RefusalKind::Denied, 4),
        ];
        for (kind, code) in cases {
            let refusal = Refusal { kind, message: "no job 7".into(), hint: None };
            assert_eq!(Failure::from(refusal).exit.code(), code);
        }
    }
}
