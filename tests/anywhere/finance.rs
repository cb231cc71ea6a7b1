//! The example's data: enough rows, none that teach nothing, nothing of the test in the training, and exactly what
//! `generate.py` writes (which refuses concepts and templates that stand in two splits).

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use motley_tests::repository;
use serde_json::Value;

fn folder() -> PathBuf {
    repository().join("examples/finance")
}

fn rows(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder().join(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The values of these keys, row by row.
fn texts(name: &str, keys: &[&str]) -> Vec<Vec<String>> {
    let text =
        |row: &Value, key: &&str| row[*key].as_str().unwrap_or_else(|| panic!("{name}: {row}")).to_owned();
    rows(name).iter().map(|row| keys.iter().map(|key| text(row, key)).collect()).collect()
}

const PAIR: [&str; 2] = ["sentence1", "sentence2"];
const TRIPLET: [&str; 3] = ["anchor", "positive", "negative"];

#[test]
fn there_are_enough_scored_and_labelled_pairs() {
    let names = ["train.jsonl", "validation.jsonl", "test.jsonl", "pairs.jsonl"];
    let count: usize = names.iter().map(|name| rows(name).len()).sum();
    assert!(count >= 1500, "{count}");
}

#[test]
fn no_row_stands_twice_or_repeats_a_text() {
    for (name, keys) in [
        ("train.jsonl", &PAIR[..]),
        ("validation.jsonl", &PAIR),
        ("test.jsonl", &PAIR),
        ("triplets.jsonl", &TRIPLET),
    ] {
        let rows = texts(name, keys);
        for row in &rows {
            assert_eq!(row.iter().collect::<BTreeSet<_>>().len(), row.len(), "{name}: {row:?}");
        }
        assert_eq!(rows.iter().collect::<BTreeSet<_>>().len(), rows.len(), "{name} has a row twice");
    }
}

#[test]
fn no_text_of_one_split_stands_in_another() {
    let all = |name: &str, keys: &[&str]| texts(name, keys).into_iter().flatten().collect::<BTreeSet<_>>();
    let mut train = all("train.jsonl", &PAIR);
    train.extend(all("triplets.jsonl", &TRIPLET));
    let (validation, test) = (all("validation.jsonl", &PAIR), all("test.jsonl", &PAIR));
    for (one, other) in [(&train, &validation), (&train, &test), (&validation, &test)] {
        assert_eq!(one.intersection(other).next(), None);
    }
}

#[test]
fn the_files_are_what_the_generator_writes() {
    let ended = Command::new("python3").arg("-B").arg(folder().join("generate.py")).arg("--check").output();
    match ended {
        Ok(ended) => assert!(ended.status.success(), "{ended:?}"),
        Err(error) => motley_tests::say_skipped(&format!("generate.py --check (python3: {error})")),
    }
}
