//! Training rows: which fields a loss needs, and a file of them that is checked once and read at random.
//!
//! ```text
//! cosent, cosine_similarity    sentence1, sentence2, score (or label)
//! infonce                      sentence1, sentence2                  the pair belongs together
//!                              anchor, positive [, negative(s)]      the same, with hard negatives
//! ```
//!
//! `sentence1`/`sentence2` and `anchor`/`positive` are two names for the same. The file stays on disk, mapped; only
//! the places of its rows are kept, so that memory does not grow with the data.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;
use motley_scheduler_core::document::Train;
use motley_scheduler_core::document::train::Loss;
use motley_scheduler_core::id::ContentHash;
use sha2::{Digest, Sha256};

use crate::text::{DataError, Place, Row};

/// First byte, length and line number of a row.
type RowPlace = (u64, u32, u64);

/// A checked file of training rows.
#[derive(Debug)]
pub(crate) struct RowFile {
    map: Option<Mmap>,
    name: Arc<str>,
    form: RowForm,
    rows: Vec<RowPlace>,
    sha256: ContentHash,
}

/// One row to learn from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TrainingRow {
    /// Anchor, its partner, hard negatives.
    pub(crate) texts: Vec<String>,
    pub(crate) label: Option<f32>,
}

/// What a row must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowForm {
    /// A pair and a number.
    Scored,
    /// A pair and a number within −1 to 1, because it is compared with a cosine.
    CosineScored,
    /// Texts that belong together, and hard negatives.
    Positives,
    /// The same with at least one hard negative, because there are no other rows to tell a pair from.
    PositivesWithNegatives,
}

/// The text's place in its row is 8 bits in the key of every random draw.
const TEXTS_PER_ROW_MAX: usize = 256;

/// Row numbers are 32-bit in the key of every random draw.
const ROWS_MAX: usize = u32::MAX as usize;

impl RowForm {
    pub(crate) fn of(loss: &Loss) -> RowForm {
        match loss {
            Loss::Cosent { .. } => RowForm::Scored,
            Loss::CosineSimilarity => RowForm::CosineScored,
            Loss::Infonce { .. } => RowForm::Positives,
        }
    }

    /// Of rows to learn from, which must teach something.
    pub(crate) fn of_training(train: &Train) -> RowForm {
        match train.loss {
            Loss::Infonce { in_batch_negatives, .. }
                if !in_batch_negatives || train.steps.batch_size == 1 =>
            {
                RowForm::PositivesWithNegatives
            }
            ref loss => RowForm::of(loss),
        }
    }
}

impl RowFile {
    /// Reads and checks every row once. `name` is how the user calls the file.
    ///
    /// # Errors
    /// The first row that cannot be used, with file, line and field; or no row at all.
    pub(crate) fn open(path: &Path, name: &str, form: RowForm) -> Result<RowFile, DataError> {
        let open = |source| DataError::Open { file: name.to_owned(), source };
        let file = File::open(path).map_err(open)?;
        let length = file.metadata().map_err(open)?.len();
        if length == 0 {
            return Err(DataError::NoRows { file: name.to_owned() });
        }
        // SAFETY: the map is read-only, and the attempt's input folder is written by nobody after its files were
        // checked. A file cut short by its owner (local commands) ends this process by a bus error, nothing else.
        let map = unsafe { Mmap::map(&file) }.map_err(open)?;
        let sha256 = ContentHash(Sha256::digest(&map).into());
        let mut opened = RowFile { map: None, name: name.into(), form, rows: Vec::new(), sha256 };
        opened.rows = opened.index(&map)?;
        opened.map = Some(map);
        if opened.rows.is_empty() {
            return Err(DataError::NoRows { file: name.to_owned() });
        }
        Ok(opened)
    }

    pub(crate) fn count(&self) -> u32 {
        self.rows.len() as u32
    }

    /// Of the whole file.
    pub(crate) fn sha256(&self) -> ContentHash {
        self.sha256
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Row `number`, from 0.
    ///
    /// # Errors
    /// The file has changed since it was checked.
    pub(crate) fn row(&self, number: u32) -> Result<TrainingRow, DataError> {
        let (start, length, line) = self.rows[number as usize];
        let map = self.map.as_ref().expect("set when the file was opened");
        self.parse(&map[start as usize..start as usize + length as usize], line)
    }

    fn index(&self, bytes: &[u8]) -> Result<Vec<RowPlace>, DataError> {
        let mut rows = Vec::new();
        let mut start = if bytes.starts_with("\u{feff}".as_bytes()) { 3 } else { 0 };
        for (line, content) in (1..).zip(bytes[start..].split_inclusive(|byte| *byte == b'\n')) {
            let trimmed = content.trim_ascii();
            if !trimmed.is_empty() {
                self.parse(trimmed, line)?;
                let offset = start + (content.len() - content.trim_ascii_start().len());
                let length = u32::try_from(trimmed.len()).map_err(|_| DataError::LineTooLong {
                    place: self.place(line),
                    limit: u64::from(u32::MAX),
                })?;
                rows.push((offset as u64, length, line));
            }
            start += content.len();
        }
        if rows.len() > ROWS_MAX {
            let message = format!("more than {ROWS_MAX} rows");
            let hint = "split the file and train on one part after another";
            return Err(DataError::Unusable { place: self.place(ROWS_MAX as u64), message, hint });
        }
        Ok(rows)
    }

    fn place(&self, line: u64) -> Place {
        Place { file: Arc::clone(&self.name), line }
    }

    fn parse(&self, bytes: &[u8], line: u64) -> Result<TrainingRow, DataError> {
        let place = self.place(line);
        let text = std::str::from_utf8(bytes).map_err(|_| DataError::NotUtf8 { place: place.clone() })?;
        let row = Row::parse(place, text)?;
        training_row(&row, self.form)
    }
}

fn training_row(row: &Row, form: RowForm) -> Result<TrainingRow, DataError> {
    let pair = if row.has("anchor") { ["anchor", "positive"] } else { ["sentence1", "sentence2"] };
    let mut texts = vec![row.text(pair[0])?.to_owned(), row.text(pair[1])?.to_owned()];
    let unusable = |message: String, hint| DataError::Unusable { place: row.place.clone(), message, hint };
    if matches!(form, RowForm::Positives | RowForm::PositivesWithNegatives) {
        for field in ["negative", "negatives"].into_iter().filter(|field| row.has(field)) {
            texts.extend(row.texts(field)?.into_iter().map(str::to_owned));
        }
        if texts.len() > TEXTS_PER_ROW_MAX {
            let message = format!("the row has {} texts, a row takes {TEXTS_PER_ROW_MAX}", texts.len());
            return Err(unusable(message, "spread the negatives over several rows of the same anchor"));
        }
        if form == RowForm::PositivesWithNegatives && texts.len() == 2 {
            let message = "the row has no `negative`, and with loss.in_batch_negatives = false or \
                           train.batch_size = 1 nothing else to tell its pair from";
            let hint = "add a `negative`, or learn from batches of several rows with in-batch negatives";
            return Err(unusable(message.to_owned(), hint));
        }
        if row.has("label") && !row.label("label")? {
            let message =
                "label is 0, but loss `infonce` takes every row as a pair that belongs together".to_owned();
            return Err(unusable(message, "drop the rows with label 0, or use loss `cosent`"));
        }
        if row.has("score") {
            let message =
                "the row has a score, but loss `infonce` takes every row as a pair that belongs together";
            let hint = "keep the rows that belong together and drop the field, or use loss `cosent`";
            return Err(unusable(message.to_owned(), hint));
        }
        return Ok(TrainingRow { texts, label: None });
    }
    let field = if !row.has("score") && row.has("label") { "label" } else { "score" };
    let score = match row.fields.get(field) {
        Some(serde_json::Value::Bool(label)) if field == "label" => f64::from(u8::from(*label)),
        _ => row.number(field)?,
    };
    if form == RowForm::CosineScored && !(-1.0..=1.0).contains(&score) {
        let message = format!(
            "{field} {score} is outside -1 to 1, but loss `cosine_similarity` compares it with a cosine"
        );
        return Err(unusable(
            message,
            "divide the scores by their maximum, or use loss `cosent`, which needs only their order",
        ));
    }
    Ok(TrainingRow { texts, label: Some(score as f32) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(content: &str, form: RowForm) -> Result<RowFile, DataError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.jsonl");
        std::fs::write(&path, content).unwrap();
        RowFile::open(&path, "data/train.jsonl", form)
    }

    #[test]
    fn a_row_of_too_many_negatives_is_named() {
        let negatives = |count: usize| vec!["\"n\""; count].join(", ");
        let row = |count| {
            format!("{{\"anchor\": \"a\", \"positive\": \"b\", \"negatives\": [{}]}}\n", negatives(count))
        };
        assert_eq!(open(&row(254), RowForm::Positives).unwrap().row(0).unwrap().texts.len(), 256);
        let error = open(&(row(1) + &row(255)), RowForm::Positives).unwrap_err().to_string();
        assert!(
            error.contains("line 2") && error.contains("257 texts") && error.contains("hint:"),
            "{error}"
        );
    }

    #[test]
    fn rows_are_read_at_random() {
        let content = "\u{feff}{\"sentence1\": \"a\", \"sentence2\": \"b\", \"score\": 2.5}\r\n\n  \
                       {\"sentence1\": \"c\", \"sentence2\": \"d\", \"label\": true}";
        let file = open(content, RowForm::Scored).unwrap();
        assert_eq!(file.count(), 2);
        let row = |texts: [&str; 2], label| TrainingRow { texts: texts.map(str::to_owned).to_vec(), label };
        assert_eq!(file.row(1).unwrap(), row(["c", "d"], Some(1.0)));
        assert_eq!(file.row(0).unwrap(), row(["a", "b"], Some(2.5)));
        assert_eq!(file.sha256(), ContentHash(Sha256::digest(content.as_bytes()).into()));
    }

    #[test]
    fn hard_negatives_follow_the_pair() {
        let content = r#"{"anchor": "a", "positive": "b", "negatives": ["c", "d"], "label": 1}
{"anchor": "a", "positive": "b", "negative": "e"}"#;
        let file = open(content, RowForm::Positives).unwrap();
        assert_eq!(file.row(0).unwrap().texts, ["a", "b", "c", "d"]);
        assert_eq!(file.row(1).unwrap().texts, ["a", "b", "e"]);
    }

    #[test]
    fn a_pair_with_nothing_to_tell_it_from_is_named() {
        let content = r#"{"anchor": "a", "positive": "b", "negatives": ["c"]}
{"anchor": "a", "positive": "b", "negatives": []}
"#;
        assert!(open(content, RowForm::Positives).is_ok());
        let message = open(content, RowForm::PositivesWithNegatives).unwrap_err().to_string();
        assert!(message.contains("line 2") && message.contains("no `negative`"), "{message}");
    }

    #[test]
    fn unusable_rows_are_named() {
        let scored = |rest: &str| format!("{{\"sentence1\": \"a\", \"sentence2\": \"b\"{rest}}}\n");
        let good = scored(r#", "score": 0.5"#);
        for (row, form, expected) in [
            (scored(""), RowForm::Scored, "line 2: field `score` is missing"),
            (scored(r#", "score": null"#), RowForm::Scored, "line 2: field `score` is null, not a number"),
            (scored(r#", "score": 4"#), RowForm::CosineScored, "line 2: score 4 is outside -1 to 1"),
            (
                r#"{"sentence1": "a", "sentence2": " ", "score": 1}"#.into(),
                RowForm::Scored,
                "line 2: field `sentence2` is an empty text",
            ),
            (r#"{"anchor": "a", "score": 1}"#.into(), RowForm::Scored, "line 2: field `positive` is missing"),
            ("nonsense".into(), RowForm::Scored, "line 2: not a JSON object"),
        ] {
            let message = open(&format!("{good}{row}"), form).unwrap_err().to_string();
            assert!(message.starts_with(&format!("data/train.jsonl {expected}")), "{message}");
        }
        for (rest, expected) in [(r#", "label": 0"#, "label is 0"), (r#", "score": 3"#, "has a score")] {
            let message = open(&scored(rest), RowForm::Positives).unwrap_err().to_string();
            assert!(message.contains("line 1") && message.contains(expected), "{message}");
        }
        for empty in ["", "\n \n"] {
            assert!(matches!(open(empty, RowForm::Scored), Err(DataError::NoRows { .. })));
        }
    }
}
