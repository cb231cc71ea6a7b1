//! What can be wrong with a job document.

/// A document that cannot be used, with key, line and remedy in the text.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DocumentError {
    /// Not TOML at all.
    #[error(
        "line {line}: {message}\nhint: a job document is TOML; texts stand in quotes, tables begin with [name]"
    )]
    Syntax { line: usize, message: String },

    /// A key that no document has.
    #[error("line {line}: unknown key `{key}`{}", hint_nearest(nearest.as_deref()))]
    UnknownKey { line: usize, key: String, nearest: Option<String> },

    /// A key that documents of other kinds have.
    #[error(
        "line {line}: `{key}` does not belong in a document of kind \"{kind}\"\nhint: it is for kind {}",
        quoted(kinds)
    )]
    MisplacedKey { line: usize, key: String, kind: &'static str, kinds: Vec<&'static str> },

    /// `line` is where the table begins that lacks it (1 when the whole table is absent).
    #[error("line {line}: `{key}` is missing\nhint: add {remedy}")]
    MissingKey { line: usize, key: String, remedy: String },

    #[error(
        "line {line}: `{key}` has to be {expected}, not {found}\nhint: docs/job-documents.md has every key with what it takes"
    )]
    WrongType { line: usize, key: String, expected: String, found: &'static str },

    /// A value of the right type that is not possible.
    #[error("line {line}: `{key}` is {found}, but has to be {expected}{}", hint_nearest(nearest.as_deref()))]
    BadValue { line: usize, key: String, found: String, expected: String, nearest: Option<String> },

    /// A key that makes no sense beside the value of another.
    #[error("line {line}: `{key}` makes no sense beside {beside}\nhint: {remedy}")]
    Conflict { line: usize, key: String, beside: String, remedy: String },

    /// Two evaluate tables of one name.
    #[error("line {line}: a second `[[evaluate]]` is named `{name}`\nhint: give each a `name` of its own")]
    DuplicateTask { line: usize, name: String },

    /// An override that cannot be written into the document.
    #[error("cannot set `{key}`: {message}\nhint: write KEY=VALUE, such as train.epochs=2")]
    Override { key: String, message: String },
}

fn hint_nearest(nearest: Option<&str>) -> String {
    nearest.map(|nearest| format!("\nhint: did you mean `{nearest}`?")).unwrap_or_default()
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}
