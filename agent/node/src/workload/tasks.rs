//! Evaluation data: scored pairs, labelled pairs, and retrieval folders in BEIR's layout.
//!
//! ```text
//! sts                    JSONL: sentence1, sentence2, score
//! pair_classification    JSONL: sentence1, sentence2, label 1 or 0
//! retrieval              corpus.jsonl  _id, title (may be absent or null), text
//!                        queries.jsonl _id, text
//!                        qrels.tsv, qrels/test.tsv (query-id, corpus-id, score, with or without a first line of
//!                        these names) or qrels.jsonl (the same three fields)
//! ```
//!
//! A document's text is its title, a space, and its text, as MTEB joins them. Queries without a judgement are left
//! out, as `trec_eval` does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use motley_scheduler_core::document::TaskKind;
use motley_scheduler_core::id::ContentHash;
use sha2::{Digest, Sha256};

use crate::models::hash_file;
use crate::text::{DataError, Lines, Place, Row, Rows};

/// One task's data, read whole.
#[derive(Debug)]
pub(crate) struct TaskData {
    pub(crate) examples: Examples,
    /// Of the file; of a folder's files, of their hashes in the order read.
    pub(crate) sha256: ContentHash,
}

#[derive(Debug)]
pub(crate) enum Examples {
    /// Pairs with a gold score.
    Scored {
        pairs: Pairs,
        gold: Vec<f64>,
    },
    /// Pairs that belong together or do not.
    Labelled {
        pairs: Pairs,
        labels: Vec<bool>,
    },
    Retrieval(Retrieval),
}

#[derive(Debug, Default)]
pub(crate) struct Pairs {
    pub(crate) first: Vec<String>,
    pub(crate) second: Vec<String>,
}

#[derive(Debug, Default)]
pub(crate) struct Retrieval {
    pub(crate) queries: Vec<(String, String)>,
    pub(crate) documents: Vec<(String, String)>,
    /// Judged relevance by document, for each query in order.
    pub(crate) judgements: Vec<BTreeMap<String, f64>>,
}

impl TaskData {
    /// `path` is where the file or folder lies, `name` how the user calls it.
    ///
    /// # Errors
    /// The first line that cannot be used, with file, line and field.
    pub(crate) fn read(kind: TaskKind, path: &Path, name: &str) -> Result<TaskData, DataError> {
        if kind == TaskKind::Retrieval {
            return read_retrieval(path, name);
        }
        let sha256 = hash(path, name)?;
        let mut rows = Rows::open(path, name)?;
        let (mut pairs, mut gold, mut labels) = (Pairs::default(), Vec::new(), Vec::new());
        while let Some(row) = rows.next_row()? {
            pairs.first.push(row.text("sentence1")?.to_owned());
            pairs.second.push(row.text("sentence2")?.to_owned());
            match kind {
                TaskKind::PairClassification => labels.push(row.label("label")?),
                _ => gold.push(row.number("score")?),
            }
        }
        if pairs.first.is_empty() {
            return Err(DataError::NoRows { file: name.to_owned() });
        }
        let examples = match kind {
            TaskKind::PairClassification => Examples::Labelled { pairs, labels },
            _ => Examples::Scored { pairs, gold },
        };
        Ok(TaskData { examples, sha256 })
    }

    /// Pairs, or judged queries.
    pub(crate) fn count(&self) -> usize {
        match &self.examples {
            Examples::Scored { pairs, .. } | Examples::Labelled { pairs, .. } => pairs.first.len(),
            Examples::Retrieval(retrieval) => retrieval.queries.len(),
        }
    }
}

fn hash(path: &Path, name: &str) -> Result<ContentHash, DataError> {
    hash_file(path).map_err(|source| DataError::Open { file: name.to_owned(), source })
}

fn read_retrieval(folder: &Path, name: &str) -> Result<TaskData, DataError> {
    let mut hasher = Sha256::new();
    let mut file = |relative: &str| -> Result<(std::path::PathBuf, String), DataError> {
        let (path, shown) = (folder.join(relative), format!("{name}/{relative}"));
        hasher.update(hash(&path, &shown)?.0);
        Ok((path, shown))
    };
    let documents = read_texts(file("corpus.jsonl")?, true)?;
    let all_queries = read_texts(file("queries.jsonl")?, false)?;
    let known = ["qrels.tsv", "qrels/test.tsv", "qrels.jsonl"];
    let qrels = known.into_iter().find(|relative| folder.join(relative).is_file()).unwrap_or(known[0]);
    let mut judged = read_judgements(file(qrels)?)?;
    let ids: BTreeSet<&str> = documents.iter().map(|(id, _)| id.as_str()).collect();
    let mut retrieval = Retrieval::default();
    for (id, text) in all_queries {
        let Some(judgements) = judged.remove(&id) else { continue };
        let absent = judgements.values().find(|(document, _)| !ids.contains(document.id.as_str()));
        if let Some((document, _)) = absent {
            let message = format!("corpus-id `{}` is not in corpus.jsonl", document.id);
            let hint = "take corpus, queries and judgements of the same data set";
            return Err(DataError::Unusable { place: document.place.clone(), message, hint });
        }
        let judgements = judgements.into_iter().map(|(id, (_, score))| (id, score)).collect();
        retrieval.queries.push((id, text));
        retrieval.judgements.push(judgements);
    }
    if retrieval.queries.is_empty() {
        return Err(DataError::NoRows { file: format!("{name}/{qrels} for the queries in queries.jsonl") });
    }
    retrieval.documents = documents;
    Ok(TaskData { examples: Examples::Retrieval(retrieval), sha256: ContentHash(hasher.finalize().into()) })
}

type File = (std::path::PathBuf, String);

/// Ids and texts; an id that comes twice is an error.
fn read_texts((path, name): File, with_title: bool) -> Result<Vec<(String, String)>, DataError> {
    let mut rows = Rows::open(&path, &name)?;
    let mut seen = BTreeSet::new();
    let mut texts = Vec::new();
    while let Some(row) = rows.next_row()? {
        let id = row.id("_id")?;
        if !seen.insert(id.clone()) {
            let message = format!("_id `{id}` comes a second time");
            return Err(DataError::Unusable { place: row.place, message, hint: "ids must be unique" });
        }
        texts.push((id, text_of(&row, with_title)?));
    }
    if texts.is_empty() { Err(DataError::NoRows { file: name }) } else { Ok(texts) }
}

fn text_of(row: &Row, with_title: bool) -> Result<String, DataError> {
    let title = row.fields.get("title").filter(|title| !title.is_null());
    if !with_title || title.is_none() {
        return Ok(row.text("text")?.to_owned());
    }
    let joined = format!("{} {}", row.any_text("title")?, row.any_text("text")?);
    let joined = joined.trim();
    if joined.is_empty() {
        return Err(DataError::EmptyText { place: row.place.clone(), field: "text".to_owned() });
    }
    Ok(joined.to_owned())
}

/// Which document, and where that was said.
struct Judged {
    id: String,
    place: Place,
}

type Judgements = BTreeMap<String, BTreeMap<String, (Judged, f64)>>;

/// The first line of BEIR's files.
const JUDGEMENT_NAMES: [&str; 3] = ["query-id", "corpus-id", "score"];

fn read_judgements((path, name): File) -> Result<Judgements, DataError> {
    let mut judgements = Judgements::new();
    let mut add = |query: String, id: String, score: f64, place: Place| {
        judgements.entry(query).or_default().insert(id.clone(), (Judged { id, place }, score));
    };
    if name.ends_with(".jsonl") {
        let mut rows = Rows::open(&path, &name)?;
        while let Some(row) = rows.next_row()? {
            add(row.id("query-id")?, row.id("corpus-id")?, row.number("score")?, row.place.clone());
        }
        return Ok(judgements);
    }
    let mut lines = Lines::open(&path, &name)?;
    while let Some((place, line)) = lines.next_line()? {
        let columns: Vec<&str> = line.split('\t').map(str::trim).collect();
        let [query, document, score] = columns[..] else {
            if line.trim().is_empty() {
                continue;
            }
            let message = format!("{} columns, not 3", columns.len());
            return Err(DataError::Unusable {
                place,
                message,
                hint: "query-id, corpus-id and score, separated by tabs",
            });
        };
        if place.line == 1 && columns == JUDGEMENT_NAMES {
            continue;
        }
        let Some(score) = score.parse::<f64>().ok().filter(|score| score.is_finite()) else {
            let message = format!("score `{score}` is not a number");
            return Err(DataError::Unusable { place, message, hint: "relevance is 0, 1, 2, ..." });
        };
        add(query.to_owned(), document.to_owned(), score, place);
    }
    Ok(judgements)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &str) -> tempfile::TempDir {
        folder(&[("x.jsonl", content)])
    }

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        folder
    }

    fn retrieval(files: &[(&str, &str)]) -> Result<Retrieval, String> {
        let folder = folder(files);
        match TaskData::read(TaskKind::Retrieval, folder.path(), "data/set") {
            Ok(TaskData { examples: Examples::Retrieval(retrieval), .. }) => Ok(retrieval),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    const CORPUS: (&str, &str) = (
        "corpus.jsonl",
        "{\"_id\": \"d1\", \"title\": \"T\", \"text\": \"x\"}\n{\"_id\": 2, \"text\": \"y\"}\n",
    );
    const QUERIES: (&str, &str) =
        ("queries.jsonl", "{\"_id\": \"q1\", \"text\": \"a\"}\n{\"_id\": \"q2\", \"text\": \"b\"}\n");

    #[test]
    fn pairs_are_read_with_what_their_task_needs() {
        let row = r#"{"sentence1": "a", "sentence2": "b", "score": 2.5, "label": 1}"#;
        let data = TaskData::read(TaskKind::Sts, &file(row).path().join("x.jsonl"), "x").unwrap();
        assert!(matches!(&data.examples, Examples::Scored { gold, .. } if gold == &[2.5]));
        let data =
            TaskData::read(TaskKind::PairClassification, &file(row).path().join("x.jsonl"), "x").unwrap();
        assert!(matches!(&data.examples, Examples::Labelled { labels, .. } if labels == &[true]));
        assert_eq!(data.count(), 1);
        for (content, expected) in [
            ("", "test.jsonl: holds no rows"),
            (
                r#"{"sentence1": "a", "sentence2": ""}"#,
                "test.jsonl line 1: field `sentence2` is an empty text",
            ),
            (r#"{"sentence1": "a", "sentence2": "b"}"#, "test.jsonl line 1: field `score` is missing"),
        ] {
            let folder = file(content);
            let error =
                TaskData::read(TaskKind::Sts, &folder.path().join("x.jsonl"), "test.jsonl").unwrap_err();
            assert!(error.to_string().starts_with(expected), "{error}");
        }
    }

    #[test]
    fn retrieval_folders_are_read_in_their_three_layouts() {
        let with_names = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\t2\t0\nelse\td1\t1\n";
        let json = r#"{"query-id": "q1", "corpus-id": "d1", "score": 2}
{"query-id": "q1", "corpus-id": 2, "score": 0}"#;
        for qrels in
            [("qrels.tsv", with_names), ("qrels/test.tsv", "q1\td1\t2\nq1\t2\t0\n\n"), ("qrels.jsonl", json)]
        {
            let got = retrieval(&[CORPUS, QUERIES, qrels]).unwrap();
            assert_eq!(
                got.documents,
                [("d1".to_owned(), "T x".to_owned()), ("2".to_owned(), "y".to_owned())]
            );
            assert_eq!(got.queries, [("q1".to_owned(), "a".to_owned())], "unjudged queries are left out");
            let expected = BTreeMap::from([("2".to_owned(), 0.0), ("d1".to_owned(), 2.0)]);
            assert_eq!(got.judgements, [expected]);
        }
    }

    #[test]
    fn a_title_that_is_null_is_none() {
        let corpus = "{\"_id\": \"d1\", \"title\": null, \"text\": \"x\"}\n";
        let qrels = ("qrels.tsv", "q1\td1\t1\n");
        let got = retrieval(&[("corpus.jsonl", corpus), QUERIES, qrels]).unwrap();
        assert_eq!(got.documents, [("d1".to_owned(), "x".to_owned())]);
        let corpus = corpus.replace("null", "3");
        let message = retrieval(&[("corpus.jsonl", &corpus), QUERIES, qrels]).unwrap_err();
        assert!(
            message.starts_with("data/set/corpus.jsonl line 1: field `title` is the number 3"),
            "{message}"
        );
    }

    #[test]
    fn unusable_retrieval_folders_are_named() {
        let qrels = |text| ("qrels.tsv", text);
        for (files, expected) in [
            (vec![CORPUS, QUERIES], "data/set/qrels.tsv: cannot be opened"),
            (vec![QUERIES, qrels("")], "data/set/corpus.jsonl: cannot be opened"),
            (
                vec![CORPUS, QUERIES, qrels("q1\td9\t1\n")],
                "data/set/qrels.tsv line 1: corpus-id `d9` is not in corpus",
            ),
            (
                vec![CORPUS, QUERIES, qrels("q1\td1\t1\nq1 d1 1\n")],
                "data/set/qrels.tsv line 2: 1 columns, not 3",
            ),
            (vec![CORPUS, QUERIES, qrels("q1\td1\t1\nq1\td1\tx\n")], "data/set/qrels.tsv line 2: score `x`"),
            (
                vec![CORPUS, QUERIES, qrels("q1\td1\t1,0\nq1\t2\t1\n")],
                "data/set/qrels.tsv line 1: score `1,0`",
            ),
            (vec![CORPUS, QUERIES, qrels("other\td1\t1\n")], "data/set/qrels.tsv for the queries"),
            (
                vec![
                    ("corpus.jsonl", "{\"_id\": 1, \"text\": \"a\"}\n{\"_id\": \"1\", \"text\": \"a\"}"),
                    QUERIES,
                ],
                "data/set/corpus.jsonl line 2: _id `1` comes a second time",
            ),
        ] {
            let message = retrieval(&files).unwrap_err();
            assert!(message.starts_with(expected), "{message}");
        }
    }
}
