//! What commands print: data on stdout (tables, or JSON with a stable schema), talk on stderr.
//!
//! Everything is readable without colour. A reader that closes the pipe early (`ctl jobs | head`) ends the
//! printing, not the command with an error.

pub mod progress;
pub mod table;
pub mod view;

use std::io::{IsTerminal, Write};

use serde_json::Value;

use crate::failure::Failure;

/// Where and how a command prints.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    pub json: bool,
    /// stderr is a terminal: progress may be drawn over itself.
    pub terminal: bool,
}

impl Output {
    pub fn new(json: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Output { json, terminal: !json && !dumb && std::io::stderr().is_terminal() }
    }

    /// Prints the table or text for people, or the value for programs.
    pub fn data(&self, text: impl FnOnce() -> String, value: impl FnOnce() -> Value) {
        if self.json { self.json_line(&value()) } else { self.text(&text()) }
    }

    /// One line of JSON.
    pub fn json_line(&self, value: &Value) {
        self.bytes(format!("{value}\n").as_bytes());
    }

    /// Text on stdout, ended by a line end.
    pub fn text(&self, text: &str) {
        let end = if text.ends_with('\n') || text.is_empty() { "" } else { "\n" };
        self.bytes(format!("{text}{end}").as_bytes());
    }

    /// Raw bytes on stdout.
    pub fn bytes(&self, bytes: &[u8]) {
        let mut stdout = std::io::stdout().lock();
        if stdout.write_all(bytes).and_then(|()| stdout.flush()).is_err() {
            // Nobody reads any more: what cannot be printed is not an error of the command.
        }
    }

    /// A line on stderr, for people.
    pub fn talk(&self, text: &str) {
        eprintln!("{text}");
    }

    /// The last word of a failed command.
    pub fn failure(&self, failure: &Failure) {
        eprintln!("{failure}");
    }
}
