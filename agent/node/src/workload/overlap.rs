//! What needs no model: how many words two texts share. A score is worth little that does not stand far above it.
//!
//! Jaccard's index of the sets of words: words of Latin letters, digits, `'` and `-`, and single Chinese characters,
//! in lower case. `examples/finance/generate.py --baseline` computes the same.

use std::collections::BTreeSet;

use super::tasks::Pairs;

/// The method's name in `report.json`.
pub(crate) const METHOD: &str = "word_overlap";

/// Shared words over all words of each pair, 0 to 1; of two texts without words, 0.
pub(crate) fn overlaps(pairs: &Pairs) -> Vec<f64> {
    pairs.first.iter().zip(&pairs.second).map(|(first, second)| overlap(first, second)).collect()
}

fn overlap(first: &str, second: &str) -> f64 {
    let (first, second) = (words(first), words(second));
    first.intersection(&second).count() as f64 / first.union(&second).count().max(1) as f64
}

fn words(text: &str) -> BTreeSet<String> {
    let (mut words, mut word) = (BTreeSet::new(), String::new());
    for letter in text.to_lowercase().chars() {
        if matches!(letter, 'a'..='z' | '0'..='9' | '\'' | '-') {
            word.push(letter);
            continue;
        }
        words.insert(std::mem::take(&mut word));
        if ('\u{4e00}'..='\u{9fff}').contains(&letter) {
            words.insert(letter.to_string());
        }
    }
    words.insert(word);
    words.remove("");
    words
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use motley_ops::metric::spearman;
    use motley_scheduler_core::document::TaskKind;

    use super::*;
    use crate::workload::tasks::{Examples, TaskData};

    #[test]
    fn words_and_chinese_characters_are_counted() {
        let set = |expected: &[&str]| expected.iter().map(|word| (*word).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(words("The rate-cut, THE cut; 25%"), set(&["the", "rate-cut", "cut", "25"]));
        assert_eq!(words("央行 cut央"), set(&["央", "行", "cut"]));
        assert_eq!(overlap("a b c", "b c d"), 0.5);
        assert_eq!(overlap("", "..."), 0.0);
    }

    #[test]
    fn the_finance_example_has_the_baseline_of_its_generator() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/finance/test.jsonl");
        let data = TaskData::read(TaskKind::Sts, &path, "test.jsonl").unwrap();
        let Examples::Scored { pairs, gold } = &data.examples else { panic!("{data:?}") };
        let spearman = spearman(&overlaps(pairs), gold).unwrap();
        // What `generate.py --baseline` prints.
        assert_eq!(format!("{spearman:.4}"), "0.1807");
    }
}
