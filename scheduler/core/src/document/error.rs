//! What can be wrong with a job document.

/// A document that cannot be used, with key, line and remedy in the text.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DocumentError {
    /// Not TOML at all.
    #[error("line {line}: {message}")]
    Syntax { line: usize, message: String },
}
