//! From texts to token ids, and from files to texts.
//!
//! ```text
//! jsonl        lines and JSON rows of a file, with file, line and field in every complaint
//! settings     longest text and prompts, as model and document say
//! tokenizer    tokenizer.json through the `tokenizers` package; its stored padding and truncation are overridden
//! ```
//!
//! Nothing here knows of devices: a caller runs [`TextTokenizer::encode_all`] inside the pool of its backend.

#[cfg(test)]
pub(crate) mod decoder_tests;
pub mod jsonl;
pub mod settings;
pub mod tokenizer;

pub use jsonl::{DataError, Lines, Place, Row, Rows};
pub use settings::TextSettings;
pub use tokenizer::{Encoded, TextTokenizer};

/// A model folder whose texts cannot be tokenized.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error("{file} is not usable: {message}")]
    Unreadable { file: &'static str, message: String },
    #[error(
        "tokenizer.json has token ids up to {id}, the model has embeddings for {rows} tokens\n\
         hint: tokenizer and weights come from different models; take both from one folder"
    )]
    Mismatch { id: u32, rows: usize },
    #[error(
        "max_length {asked} is outside 1 + special tokens ({least}) to {most}, the model's last position\n\
         hint: lower model.max_length"
    )]
    MaxLength { asked: usize, least: usize, most: usize },
    #[error("prompt `{name}` is not known; known are: {known}\nhint: add it to [model] prompts")]
    UnknownPrompt { name: String, known: String },
    #[error("text cannot be tokenized: {message}")]
    Encode { message: String },
}

/// Says on stderr, past the test runner (which keeps the words of a passing test to itself), that a check does nothing.
#[cfg(test)]
pub(crate) fn say_skipped(why: &str) {
    let _unsaid = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("skipped: {why}\n"));
}
