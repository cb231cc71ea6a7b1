//! `--set key=value`: an override written into the user's text, so that the text stays the whole truth.

use toml_edit::{DocumentMut, Item, Table, TableLike, Value};

use super::DocumentError;
use super::keys::{self, Range};

/// Sets each dotted key (`train.epochs`, `evaluate.0.name`) to a value (TOML; a bare word counts as a string) and
/// returns the new text. Comments and order of the old text stay.
///
/// # Errors
/// Malformed text or value, or a key that is no table where a table is needed.
pub fn apply_overrides(text: &str, overrides: &[(String, String)]) -> Result<String, DocumentError> {
    if overrides.is_empty() {
        return Ok(text.to_owned());
    }
    // Parsed once more by the strict reader, whose message names the line.
    super::reader::tree(text)?;
    let mut document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| {
        DocumentError::Syntax { line: 1, message: error.message().trim().to_owned() }
    })?;
    for (key, value) in overrides {
        let error = |message: String| DocumentError::Override { key: key.clone(), message };
        let parts: Vec<&str> = key.split('.').map(str::trim).collect();
        let Some((last, tables)) = parts.split_last().filter(|_| parts.iter().all(|part| !part.is_empty()))
        else {
            return Err(error("the key has an empty part".to_owned()));
        };
        let table = descend(document.as_table_mut(), tables).map_err(error)?;
        set(table, last, parse_value(key, value));
    }
    Ok(document.to_string())
}

/// The table at the end of `path`, made where there is none.
fn descend<'a>(root: &'a mut dyn TableLike, path: &[&str]) -> Result<&'a mut dyn TableLike, String> {
    let mut table = root;
    let mut parts = path.iter().peekable();
    while let Some(part) = parts.next() {
        let item = table.entry(part).or_insert_with(|| Item::Table(Table::new()));
        table = match item {
            Item::ArrayOfTables(array) => {
                let count = array.len();
                let index = parts.next().and_then(|index| index.parse::<usize>().ok());
                let index = index.ok_or_else(|| {
                    format!("`{part}` is a list of {count} tables: say which, as in `{part}.0.KEY`")
                })?;
                let table = array.get_mut(index);
                table.ok_or_else(|| format!("`{part}` has {count} tables, counted from 0"))?
            }
            other => other.as_table_like_mut().ok_or_else(|| format!("`{part}` is a value, not a table"))?,
        };
    }
    Ok(table)
}

fn set(table: &mut dyn TableLike, key: &str, mut value: Value) {
    match table.get_mut(key).and_then(Item::as_value_mut) {
        Some(old) => {
            *value.decor_mut() = old.decor().clone();
            *old = value;
        }
        None => {
            table.insert(key, Item::Value(value));
        }
    }
}

/// TOML where it is, a string otherwise. A key that holds a text takes digits as text too (`model.revision=1234`).
fn parse_value(key: &str, text: &str) -> Value {
    let string = || Value::from(text);
    let parsed = match text.parse::<Value>() {
        Ok(parsed) => parsed,
        Err(_) => return string(),
    };
    let listed: Vec<&str> = key.split('.').filter(|part| part.parse::<usize>().is_err()).collect();
    let names = [listed.join("."), listed.join("[].")];
    let wants_text = names.iter().filter_map(|name| keys::find(name)).any(|key| {
        matches!(key.range, Range::Text(_) | Range::Choice(_) | Range::Size(..) | Range::Duration(..))
    });
    if wants_text && !parsed.is_str() { string() } else { parsed }
}
