//! A document as TOML with places: finds keys that no document has, and reads values with their range.
//!
//! Ranges come from [`super::keys`]; nothing here knows a single key.

use std::ops::Range as Bytes;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::DocumentError;
use super::keys::{self, Absent, Key, Range};
use crate::unit;

/// The whole document.
pub(super) struct Reader<'a> {
    text: &'a str,
    root: &'a DeTable<'a>,
    kind: &'static str,
}

/// One table of it, perhaps absent: then every key is.
#[derive(Clone, Copy)]
pub(super) struct Table<'a> {
    text: &'a str,
    /// `train`, `evaluate[]`, or nothing for the root.
    name: &'static str,
    table: Option<&'a DeTable<'a>>,
    line: usize,
}

/// A value and what its key says about it.
#[derive(Clone, Copy)]
pub(super) struct Found<'a> {
    text: &'a str,
    pub key: &'static Key,
    pub line: usize,
    value: &'a DeValue<'a>,
}

/// TOML text as a tree with places.
pub(super) fn tree(text: &str) -> Result<Spanned<DeTable<'_>>, DocumentError> {
    DeTable::parse(text).map_err(|error| DocumentError::Syntax {
        line: error.span().map_or(1, |span| line_of(text, &span)),
        message: error.message().trim().replace('\n', ", "),
    })
}

impl<'a> Reader<'a> {
    /// Reads `version` and `kind`, then checks that every key is known for that kind.
    pub(super) fn new(text: &'a str, root: &'a DeTable<'a>) -> Result<Self, DocumentError> {
        let top = Table { text, name: "", table: Some(root), line: 1 };
        let version = top.required("version")?;
        if !matches!(version.value, DeValue::Integer(_)) {
            return Err(version.wrong_type());
        }
        if version.unsigned() != Some(1) {
            return Err(version.bad_value());
        }
        let kind = top.required("kind")?.choice()?;
        let reader = Reader { text, root, kind };
        reader.check_keys()?;
        Ok(reader)
    }

    pub(super) fn kind(&self) -> &'static str {
        self.kind
    }

    pub(super) fn top(&self) -> Table<'a> {
        Table { text: self.text, name: "", table: Some(self.root), line: 1 }
    }

    /// The table `[name]`.
    pub(super) fn table(&self, name: &'static str) -> Table<'a> {
        let value = self.root.get(name);
        Table {
            text: self.text,
            name,
            table: value.and_then(|value| value.get_ref().as_table()),
            line: value.map_or(1, |value| line_of(self.text, &value.span())),
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.root.contains_key(name)
    }

    /// The tables `[[name]]` (or the one `[name]`), whose keys are listed under `listed`.
    pub(super) fn tables(&self, name: &str, listed: &'static str) -> Vec<Table<'a>> {
        let Some(value) = self.root.get(name) else { return Vec::new() };
        let items: Vec<&'a Spanned<DeValue<'a>>> = match value.get_ref() {
            DeValue::Array(array) => array.iter().collect(),
            _ => vec![value],
        };
        let table = |item: &'a Spanned<DeValue<'a>>| Table {
            text: self.text,
            name: listed,
            table: item.get_ref().as_table(),
            line: line_of(self.text, &item.span()),
        };
        items.into_iter().map(table).collect()
    }

    /// The first key, in the order of the text, that no document of this kind has.
    fn check_keys(&self) -> Result<(), DocumentError> {
        let mut misfits = Vec::new();
        for (key, value) in self.root {
            let name = key.get_ref().as_ref();
            let line = line_of(self.text, &key.span());
            if keys::find(name).is_some() {
                continue;
            }
            let array = format!("{name}[]");
            let listed = |table: &str| keys::KEYS.iter().any(|key| key.table() == Some(table));
            if listed(&array) {
                self.check_tables(&array, true, line, value, &mut misfits);
            } else if listed(name) {
                self.check_tables(name, name == "resources", line, value, &mut misfits);
            } else {
                misfits.push((line, self.unknown(line, name)));
            }
        }
        misfits.into_iter().min_by_key(|(line, _)| *line).map_or(Ok(()), |(_, error)| Err(error))
    }

    fn check_tables(
        &self,
        table: &str,
        array_allowed: bool,
        line: usize,
        value: &Spanned<DeValue<'_>>,
        misfits: &mut Vec<(usize, DocumentError)>,
    ) {
        let shown = table.trim_end_matches("[]");
        let wrong = |expected: &str, found: &DeValue<'_>| {
            let (key, expected) = (shown.to_owned(), expected.to_owned());
            (line, DocumentError::WrongType { line, key, expected, found: type_name(found) })
        };
        match value.get_ref() {
            DeValue::Table(entries) if !table.ends_with("[]") => {
                self.check_table(table, line, entries, misfits)
            }
            DeValue::Array(items) if array_allowed && !items.is_empty() => {
                for item in items.iter() {
                    match item.get_ref().as_table() {
                        Some(entries) => self.check_table(table, line, entries, misfits),
                        None => misfits.push(wrong("tables only", item.get_ref())),
                    }
                }
            }
            other if table.ends_with("[]") => {
                misfits.push(wrong(&format!("one or more `[[{shown}]]` tables"), other));
            }
            other => misfits.push(wrong(&format!("a table, `[{shown}]`"), other)),
        }
    }

    /// `line` is where the table begins.
    fn check_table(
        &self,
        table: &str,
        line: usize,
        entries: &DeTable<'_>,
        misfits: &mut Vec<(usize, DocumentError)>,
    ) {
        let of_table = || keys::KEYS.iter().filter(|key| key.table() == Some(table));
        if entries.is_empty() && !of_table().any(|key| key.kinds.contains(&self.kind)) {
            let key = table.trim_end_matches("[]").to_owned();
            // No table has keys of several sets of kinds, none of them this one.
            let kinds = of_table().next().map(|key| key.kinds.to_vec()).unwrap_or_default();
            misfits.push((line, DocumentError::MisplacedKey { line, key, kind: self.kind, kinds }));
        }
        for (key, _) in entries {
            let name = format!("{table}.{}", key.get_ref());
            let line = line_of(self.text, &key.span());
            match keys::find(&name) {
                None => misfits.push((line, self.unknown(line, &name))),
                Some(known) if !known.kinds.contains(&self.kind) => {
                    let (kind, kinds) = (self.kind, known.kinds.to_vec());
                    misfits.push((line, DocumentError::MisplacedKey { line, key: name, kind, kinds }));
                }
                Some(_) => {}
            }
        }
    }

    fn unknown(&self, line: usize, name: &str) -> DocumentError {
        let known = keys::KEYS.iter().filter(|key| key.kinds.contains(&self.kind));
        let tables = known.clone().filter_map(|key| key.table());
        let candidates = known.map(|key| key.name).chain(tables);
        let last = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
        let distance = |candidate: &str| {
            let whole = strsim::damerau_levenshtein(name, candidate);
            whole.min(strsim::damerau_levenshtein(&last(name), &last(candidate)) + 1)
        };
        let nearest = candidates.map(|name| (distance(name), name)).min_by_key(|(distance, _)| *distance);
        let near_enough = last(name).chars().count() / 3 + 1;
        let nearest = nearest.filter(|(distance, _)| *distance <= near_enough.max(2));
        let nearest = nearest.map(|(_, name)| name.trim_end_matches("[]").to_owned());
        DocumentError::UnknownKey { line, key: name.to_owned(), nearest }
    }
}

impl<'a> Table<'a> {
    pub(super) fn line(&self) -> usize {
        self.line
    }

    /// The value of `key`. Keys are those of [`super::keys`].
    pub(super) fn get(&self, key: &str) -> Option<Found<'a>> {
        let value = self.table?.get(key)?;
        let line = line_of(self.text, &value.span());
        Some(Found { text: self.text, key: self.listed(key), line, value: value.get_ref() })
    }

    pub(super) fn required(&self, key: &str) -> Result<Found<'a>, DocumentError> {
        self.get(key).ok_or_else(|| {
            let listed = self.listed(key);
            let remedy = match listed.absent {
                Absent::Required(example) => example.to_owned(),
                Absent::Value(_) | Absent::Means(_) => format!("`{key} = ...`, {}", listed.range),
            };
            DocumentError::MissingKey { line: self.line, key: listed.name.to_owned(), remedy }
        })
    }

    pub(super) fn unsigned(&self, key: &str, absent: u64) -> Result<u64, DocumentError> {
        self.get(key).map_or(Ok(absent), |found| found.integer())
    }

    /// An integer whose range, as listed, lies within 32 bits.
    pub(super) fn count(&self, key: &str, absent: u32) -> Result<u32, DocumentError> {
        Ok(self.unsigned(key, absent.into())?.try_into().unwrap_or(u32::MAX))
    }

    pub(super) fn number(&self, key: &str, absent: f64) -> Result<f64, DocumentError> {
        self.get(key).map_or(Ok(absent), |found| found.number())
    }

    pub(super) fn boolean(&self, key: &str, absent: bool) -> Result<bool, DocumentError> {
        self.get(key).map_or(Ok(absent), |found| found.boolean())
    }

    pub(super) fn choice(&self, key: &str, absent: &'static str) -> Result<&'static str, DocumentError> {
        self.get(key).map_or(Ok(absent), |found| found.choice())
    }

    /// A text that is not empty.
    pub(super) fn text(&self, key: &str) -> Result<Option<String>, DocumentError> {
        self.get(key).map(|found| found.text().map(str::to_owned)).transpose()
    }

    /// Refuses the keys that make no sense `beside` something else in the document.
    pub(super) fn refuse(&self, names: &[&str], beside: &str, remedy: &str) -> Result<(), DocumentError> {
        match names.iter().find_map(|name| self.get(name)) {
            None => Ok(()),
            Some(found) => Err(DocumentError::Conflict {
                line: found.line,
                key: found.key.name.to_owned(),
                beside: beside.to_owned(),
                remedy: remedy.to_owned(),
            }),
        }
    }

    fn listed(&self, key: &str) -> &'static Key {
        let name = if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) };
        keys::find(&name).expect("the parser asks for listed keys only: a test reads every one of them")
    }
}

impl<'a> Found<'a> {
    pub(super) fn value(&self) -> &'a DeValue<'a> {
        self.value
    }

    fn unsigned(&self) -> Option<u64> {
        let DeValue::Integer(integer) = self.value else { return None };
        u64::from_str_radix(integer.as_str(), integer.radix()).ok()
    }

    pub(super) fn integer(&self) -> Result<u64, DocumentError> {
        if !matches!(self.value, DeValue::Integer(_)) {
            return Err(self.wrong_type());
        }
        let Range::Integer(min, max) = self.key.range else { return Err(self.wrong_type()) };
        self.unsigned().filter(|value| (min..=max).contains(value)).ok_or_else(|| self.bad_value())
    }

    pub(super) fn number(&self) -> Result<f64, DocumentError> {
        let number = match self.value {
            DeValue::Integer(integer) => self.unsigned().map(|value| value as f64).or_else(|| {
                i64::from_str_radix(integer.as_str(), integer.radix()).ok().map(|value| value as f64)
            }),
            DeValue::Float(float) => float.as_str().parse().ok(),
            _ => return Err(self.wrong_type()),
        };
        let Range::Number(min, max) = self.key.range else { return Err(self.wrong_type()) };
        number.filter(|value| (min..=max).contains(value)).ok_or_else(|| self.bad_value())
    }

    pub(super) fn boolean(&self) -> Result<bool, DocumentError> {
        self.value.as_bool().ok_or_else(|| self.wrong_type())
    }

    pub(super) fn text(&self) -> Result<&'a str, DocumentError> {
        let DeValue::String(text) = self.value else { return Err(self.wrong_type()) };
        if text.trim().is_empty() {
            return Err(self.bad_value());
        }
        Ok(text)
    }

    pub(super) fn choice(&self) -> Result<&'static str, DocumentError> {
        let Range::Choice(names) = self.key.range else { return Err(self.wrong_type()) };
        self.one_of(self.text()?, names)
    }

    /// `text` as one of `names`.
    pub(super) fn one_of(
        &self,
        text: &str,
        names: &'static [&'static str],
    ) -> Result<&'static str, DocumentError> {
        names.iter().copied().find(|name| *name == text).ok_or_else(|| {
            let distances = names.iter().map(|name| (strsim::damerau_levenshtein(text, name), *name));
            let nearest = distances.min().filter(|(distance, _)| *distance <= 2);
            DocumentError::BadValue {
                line: self.line,
                key: self.key.name.to_owned(),
                found: shorten(text),
                expected: self.key.range.to_string(),
                nearest: nearest.map(|(_, name)| name.to_owned()),
            }
        })
    }

    pub(super) fn size(&self) -> Result<unit::Bytes, DocumentError> {
        let size: unit::Bytes = self.text()?.parse().map_err(|_| self.bad_value())?;
        match self.key.range {
            Range::Size(min, max) if !(min..=max).contains(&size.0) => Err(self.bad_value()),
            _ => Ok(size),
        }
    }

    pub(super) fn duration(&self) -> Result<unit::Span, DocumentError> {
        let span: unit::Span = self.text()?.parse().map_err(|_| self.bad_value())?;
        match self.key.range {
            Range::Duration(min, max) if !(min..=max).contains(&span.milliseconds) => Err(self.bad_value()),
            _ => Ok(span),
        }
    }

    /// A list of texts.
    pub(super) fn texts(&self) -> Result<Vec<&'a str>, DocumentError> {
        let DeValue::Array(items) = self.value else { return Err(self.wrong_type()) };
        let text = |item: &'a Spanned<DeValue<'a>>| match item.get_ref() {
            DeValue::String(text) if !text.trim().is_empty() => Ok(text.as_ref()),
            DeValue::String(_) => Err(self.bad_value()),
            _ => Err(self.wrong_type()),
        };
        items.iter().map(text).collect()
    }

    pub(super) fn wrong_type(&self) -> DocumentError {
        DocumentError::WrongType {
            line: self.line,
            key: self.key.name.to_owned(),
            expected: self.key.range.to_string(),
            found: type_name(self.value),
        }
    }

    pub(super) fn bad_value(&self) -> DocumentError {
        let found = match self.value {
            DeValue::String(text) => shorten(text),
            DeValue::Integer(integer) => integer.to_string(),
            DeValue::Float(float) => float.as_str().to_owned(),
            DeValue::Boolean(value) => value.to_string(),
            other => type_name(other).to_owned(),
        };
        DocumentError::BadValue {
            line: self.line,
            key: self.key.name.to_owned(),
            found,
            expected: self.key.range.to_string(),
            nearest: None,
        }
    }

    /// The entries of a table of texts, such as prompts.
    pub(super) fn text_table(&self) -> Result<Vec<(String, String)>, DocumentError> {
        let DeValue::Table(entries) = self.value else { return Err(self.wrong_type()) };
        let mut texts = Vec::new();
        for (name, value) in entries {
            let DeValue::String(text) = value.get_ref() else {
                return Err(DocumentError::WrongType {
                    line: line_of(self.text, &value.span()),
                    key: format!("{}.{}", self.key.name, name.get_ref()),
                    expected: "a text".to_owned(),
                    found: type_name(value.get_ref()),
                });
            };
            texts.push((name.get_ref().to_string(), text.to_string()));
        }
        Ok(texts)
    }
}

/// A text in quotes, cut after 60 characters.
fn shorten(text: &str) -> String {
    match text.char_indices().nth(60) {
        None => format!("\"{text}\""),
        Some((end, _)) => format!("\"{}...\"", &text[..end]),
    }
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn line_of(text: &str, span: &Bytes<usize>) -> usize {
    text.as_bytes()[..span.start.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}
