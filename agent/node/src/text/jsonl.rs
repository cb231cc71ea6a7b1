//! Lines and JSON rows of a file, read one at a time; every complaint names file, line and field.
//!
//! The file's name in a complaint is the one that the user wrote, not the place where the runner keeps its copy.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

/// Longest line read. A row holds a few texts; 64 MiB is a file without line ends, not a row.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// Data that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("{file}: cannot be opened: {source}\nhint: paths are relative to the job document")]
    Open { file: String, source: io::Error },
    #[error("{file} line {line}: cannot be read: {source}\nhint: check the disk, then run again")]
    Read { file: String, line: u64, source: io::Error },
    #[error("{place}: not UTF-8 text\nhint: convert the file to UTF-8")]
    NotUtf8 { place: Place },
    #[error("{place}: longer than {limit} bytes\nhint: one JSON object a line")]
    LineTooLong { place: Place, limit: u64 },
    #[error("{place}: not a JSON object: {message}\nhint: one JSON object a line")]
    NotJson { place: Place, message: String },
    #[error(
        "{place}: field `{field}` is missing; the row has: {present}\n\
         hint: docs/job-documents.md lists the fields of a row"
    )]
    MissingField { place: Place, field: String, present: String },
    #[error("{place}: field `{field}` is {found}, not {expected}\nhint: mend or drop the row")]
    WrongType { place: Place, field: String, expected: &'static str, found: String },
    #[error(
        "{place}: field `{field}` is an empty text\nhint: drop the row; an empty text has no meaning to learn"
    )]
    EmptyText { place: Place, field: String },
    #[error("{place}: {message}\nhint: {hint}")]
    Unusable { place: Place, message: String, hint: &'static str },
    #[error("{file}: holds no rows\nhint: one JSON object a line; is it the right file?")]
    NoRows { file: String },
}

/// A line of a file, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub file: Arc<str>,
    pub line: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} line {}", self.file, self.line)
    }
}

/// The lines of a UTF-8 text file, without their ends; a byte order mark is skipped.
#[derive(Debug)]
pub struct Lines {
    reader: BufReader<File>,
    place: Place,
    buffer: Vec<u8>,
    bytes_read: u64,
}

impl Lines {
    /// `name` is how the user calls the file.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: &Path, name: &str) -> Result<Lines, DataError> {
        let file = File::open(path).map_err(|source| DataError::Open { file: name.to_owned(), source })?;
        let place = Place { file: name.into(), line: 0 };
        Ok(Lines {
            reader: BufReader::with_capacity(1 << 20, file),
            place,
            buffer: Vec::new(),
            bytes_read: 0,
        })
    }

    /// Bytes of the lines given so far, their ends included.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// The next line and its place; nothing at the end.
    ///
    /// # Errors
    /// Reading fails, the line is not UTF-8, or it has no end within 64 MiB.
    pub fn next_line(&mut self) -> Result<Option<(Place, &str)>, DataError> {
        self.buffer.clear();
        self.place.line += 1;
        let mut limited = (&mut self.reader).take(LINE_BYTES_MAX + 1);
        let read = limited.read_until(b'\n', &mut self.buffer);
        let count = read.map_err(|source| DataError::Read {
            file: self.place.file.to_string(),
            line: self.place.line,
            source,
        })?;
        if count == 0 {
            return Ok(None);
        }
        self.bytes_read += count as u64;
        if self.buffer.len() as u64 > LINE_BYTES_MAX {
            return Err(DataError::LineTooLong { place: self.place.clone(), limit: LINE_BYTES_MAX });
        }
        let bytes = self.buffer.strip_suffix(b"\n").unwrap_or(&self.buffer);
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        let text =
            std::str::from_utf8(bytes).map_err(|_| DataError::NotUtf8 { place: self.place.clone() })?;
        let text = if self.place.line == 1 { text.strip_prefix('\u{feff}').unwrap_or(text) } else { text };
        Ok(Some((self.place.clone(), text)))
    }
}

/// The JSON objects of a file; blank lines are skipped.
#[derive(Debug)]
pub struct Rows {
    lines: Lines,
}

impl Rows {
    /// # Errors
    /// As [`Lines::open`].
    pub fn open(path: &Path, name: &str) -> Result<Rows, DataError> {
        Ok(Rows { lines: Lines::open(path, name)? })
    }

    /// The next row; nothing at the end.
    ///
    /// # Errors
    /// As [`Lines::next_line`], or the line is no JSON object.
    pub fn next_row(&mut self) -> Result<Option<Row>, DataError> {
        while let Some((place, line)) = self.lines.next_line()? {
            if line.trim().is_empty() {
                continue;
            }
            return Row::parse(place, line).map(Some);
        }
        Ok(None)
    }
}

/// One JSON object of a file.
#[derive(Debug, Clone)]
pub struct Row {
    pub place: Place,
    pub fields: Map<String, Value>,
}

impl Row {
    /// # Errors
    /// The line is no JSON object.
    pub fn parse(place: Place, line: &str) -> Result<Row, DataError> {
        match serde_json::from_str::<Value>(line) {
            Ok(Value::Object(fields)) => Ok(Row { place, fields }),
            Ok(other) => Err(DataError::NotJson { place, message: format!("it is {}", kind(&other)) }),
            Err(error) => Err(DataError::NotJson { place, message: error.to_string() }),
        }
    }

    pub fn has(&self, field: &str) -> bool {
        self.fields.contains_key(field)
    }

    /// A text that says something.
    ///
    /// # Errors
    /// The field is missing, no text, or empty but for white space.
    pub fn text(&self, field: &str) -> Result<&str, DataError> {
        let text = self.any_text(field)?;
        if text.trim().is_empty() {
            return Err(DataError::EmptyText { place: self.place.clone(), field: field.to_owned() });
        }
        Ok(text)
    }

    /// A text that may be empty.
    ///
    /// # Errors
    /// The field is missing or no text.
    pub fn any_text(&self, field: &str) -> Result<&str, DataError> {
        match self.value(field)? {
            Value::String(text) => Ok(text),
            other => Err(self.wrong_type(field, "a text", other)),
        }
    }

    /// A text, or a list of texts; each says something.
    ///
    /// # Errors
    /// The field is missing, of another type, or holds an empty text.
    pub fn texts(&self, field: &str) -> Result<Vec<&str>, DataError> {
        let Value::Array(items) = self.value(field)? else {
            return Ok(vec![self.text(field)?]);
        };
        let mut texts = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let field = format!("{field}[{index}]");
            match item {
                Value::String(text) if text.trim().is_empty() => {
                    return Err(DataError::EmptyText { place: self.place.clone(), field });
                }
                Value::String(text) => texts.push(text.as_str()),
                other => return Err(self.wrong_type(&field, "a text", other)),
            }
        }
        Ok(texts)
    }

    /// A number.
    ///
    /// # Errors
    /// The field is missing or no number.
    pub fn number(&self, field: &str) -> Result<f64, DataError> {
        let value = self.value(field)?;
        value.as_f64().ok_or_else(|| self.wrong_type(field, "a number", value))
    }

    /// A label 1 or 0 (or true, false).
    ///
    /// # Errors
    /// The field is missing or something else.
    pub fn label(&self, field: &str) -> Result<bool, DataError> {
        match self.value(field)? {
            Value::Bool(label) => Ok(*label),
            value if value.as_f64() == Some(1.0) => Ok(true),
            value if value.as_f64() == Some(0.0) => Ok(false),
            other => Err(self.wrong_type(field, "1 or 0", other)),
        }
    }

    /// An id: a text or a whole number.
    ///
    /// # Errors
    /// The field is missing or something else.
    pub fn id(&self, field: &str) -> Result<String, DataError> {
        match self.value(field)? {
            Value::String(id) if !id.is_empty() => Ok(id.clone()),
            Value::Number(id) if id.is_i64() || id.is_u64() => Ok(id.to_string()),
            other => Err(self.wrong_type(field, "an id", other)),
        }
    }

    fn value(&self, field: &str) -> Result<&Value, DataError> {
        self.fields.get(field).ok_or_else(|| DataError::MissingField {
            place: self.place.clone(),
            field: field.to_owned(),
            present: present(&self.fields),
        })
    }

    fn wrong_type(&self, field: &str, expected: &'static str, found: &Value) -> DataError {
        let found = match found {
            Value::Number(number) => format!("the number {number}"),
            other => kind(other).to_owned(),
        };
        DataError::WrongType { place: self.place.clone(), field: field.to_owned(), expected, found }
    }
}

fn present(fields: &Map<String, Value>) -> String {
    if fields.is_empty() {
        return "nothing".to_owned();
    }
    fields.keys().take(12).map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows_of(content: &[u8]) -> Rows {
        let mut path = std::env::temp_dir();
        let thread = format!("{:?}", std::thread::current().id());
        path.push(format!("motley-jsonl-{}-{}", std::process::id(), thread.replace(['(', ')'], "")));
        std::fs::write(&path, content).unwrap();
        let rows = Rows::open(&path, "data/train.jsonl").unwrap();
        std::fs::remove_file(&path).unwrap();
        rows
    }

    fn only(content: &[u8]) -> Row {
        rows_of(content).next_row().unwrap().unwrap()
    }

    #[test]
    fn rows_come_in_order_with_their_lines() {
        let mut rows = rows_of("\u{feff}{\"a\": \"x\"}\r\n\n{\"a\": \"ü\"}".as_bytes());
        let first = rows.next_row().unwrap().unwrap();
        assert_eq!((first.place.line, first.text("a").unwrap()), (1, "x"));
        let second = rows.next_row().unwrap().unwrap();
        assert_eq!((second.place.line, second.text("a").unwrap()), (3, "ü"));
        assert!(rows.next_row().unwrap().is_none());
    }

    #[test]
    fn complaints_name_file_line_and_field() {
        let mut rows = rows_of(b"{\"sentence1\": \"a\", \"score\": \"3\"}\n{\"sentence1\": ");
        let row = rows.next_row().unwrap().unwrap();
        let message = |result: Result<(), DataError>| result.unwrap_err().to_string();
        let missing = message(row.text("sentence2").map(drop));
        assert!(missing.contains("data/train.jsonl line 1: field `sentence2` is missing"), "{missing}");
        assert!(missing.contains("sentence1") && missing.contains("score"), "{missing}");
        let wrong = message(row.number("score").map(drop));
        let wanted =
            "data/train.jsonl line 1: field `score` is a text, not a number\nhint: mend or drop the row";
        assert_eq!(wrong, wanted);
        let broken = message(rows.next_row().map(drop));
        assert!(broken.starts_with("data/train.jsonl line 2: not a JSON object"), "{broken}");
    }

    #[test]
    fn values_are_checked() {
        let row = only(br#"{"e": " ", "n": 7, "l": [1], "t": ["a", ""], "y": 1, "b": false, "two": 2}"#);
        assert!(matches!(row.text("e"), Err(DataError::EmptyText { .. })));
        assert_eq!(row.any_text("e").unwrap(), " ");
        assert!(matches!(row.text("n"), Err(DataError::WrongType { .. })));
        assert!(matches!(row.texts("l"), Err(DataError::WrongType { .. })));
        let message = row.texts("t").unwrap_err().to_string();
        assert!(message.contains("`t[1]` is an empty text"), "{message}");
        assert_eq!((row.id("n").unwrap().as_str(), row.number("n").unwrap()), ("7", 7.0));
        assert!(row.label("y").unwrap() && !row.label("b").unwrap());
        assert!(row.label("two").unwrap_err().to_string().contains("the number 2, not 1 or 0"));
        for bad in [&b"[1]"[..], b"3", b"\"x\"", b"{\"a\": 1} x", b"nonsense"] {
            assert!(matches!(rows_of(bad).next_row(), Err(DataError::NotJson { .. })), "{bad:?}");
        }
        assert!(matches!(rows_of(b"{\"a\": \"\xff\"}").next_row(), Err(DataError::NotUtf8 { .. })));
    }

    #[test]
    fn a_missing_file_is_named_as_the_user_wrote_it() {
        let message = Rows::open(Path::new("/nowhere/x"), "../corpus/a.jsonl").unwrap_err().to_string();
        assert!(message.starts_with("../corpus/a.jsonl: cannot be opened"), "{message}");
    }
}
