//! What is wrong with data and models, found by the runner: told with place and remedy, and nothing half-written.

use std::path::Path;

use motley_tests::data::{Project, TrainOptions, pairs};
use motley_tests::process::Ctl;

use crate::CTL;
use crate::bad_input::Mistake;

#[test]
fn rows_that_cannot_be_used_are_named_by_file_and_line() {
    let good = "{\"sentence1\": \"rate cut\", \"sentence2\": \"bond yield\", \"score\": 0.5}\n";
    let cases: [(&str, &[&str]); 5] = [
        ("{\"sentence1\": \"rate cut\", \"score\": 0.5}\n", &["sentence2"]),
        ("{\"sentence1\": \"rate cut\", \"sentence2\": 7, \"score\": 0.5}\n", &["sentence2"]),
        ("{\"sentence1\": \"rate cut\", \"sentence2\": \"\", \"score\": 0.5}\n", &["sentence2", "empty"]),
        ("{\"sentence1\": \"rate cut\", \"sentence2\": \"x\", \"score\": \"high\"}\n", &["score"]),
        ("not json\n", &["JSON"]),
    ];
    for (line, words) in cases {
        let text = format!("{good}{good}{line}{good}");
        let mistake = Mistake::new().write("train.jsonl", text.as_bytes());
        let words: Vec<&str> =
            words.iter().copied().chain(["error:", "train.jsonl", "3", "data_error"]).collect();
        mistake.ends_with(1, &words);
    }
    Mistake::new().write("train.jsonl", b"").ends_with(1, &["error:", "train.jsonl", "data_error"]);
    Mistake::new().write("test.jsonl", b"{}\n").ends_with(1, &["error:", "test.jsonl", "data_error"]);
}

#[test]
fn a_model_folder_that_lacks_something_is_told_what() {
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let mistake = Mistake::new();
        std::fs::remove_file(mistake.path("model").join(name)).unwrap();
        mistake.ends_with(1, &["error:", name, "user_error"]);
    }
}

#[test]
fn weights_that_are_cut_off_or_lie_are_refused() {
    let whole = std::fs::read(Mistake::new().path("model/model.safetensors")).unwrap();
    let cut = &whole[..whole.len() - 1000];
    Mistake::new().write("model/model.safetensors", cut).ends_with(1, &["error:", "model.safetensors"]);
    let long_header = [&u64::MAX.to_le_bytes()[..], &whole[8..]].concat();
    Mistake::new()
        .write("model/model.safetensors", &long_header)
        .ends_with(1, &["error:", "model.safetensors"]);
    let lie = String::from_utf8_lossy(&whole).find("[32,32]").expect("the header names a shape");
    let mut lying = whole.clone();
    lying[lie..lie + 7].copy_from_slice(b"[32,33]");
    Mistake::new().write("model/model.safetensors", &lying).ends_with(1, &["error:", "model.safetensors"]);
    Mistake::new().write("model/model.safetensors", b"").ends_with(1, &["error:", "model.safetensors"]);
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let text = std::fs::read_to_string(Mistake::new().path("model/tokenizer.json")).unwrap();
    let other = text.replace("\"old\": 44", "\"old\": 30000");
    assert_ne!(text, other);
    Mistake::new()
        .write("model/tokenizer.json", other.as_bytes())
        .ends_with(1, &["error:", "tokenizer", "30000", "hint:"]);
    Mistake::new().write("model/tokenizer.json", b"{}").ends_with(1, &["error:", "tokenizer"]);
}

#[test]
fn a_weights_hash_that_differs_is_refused_with_both() {
    let wrong = "0".repeat(64);
    Mistake::new()
        .replace("[model]\n", &format!("[model]\nsha256 = \"{wrong}\"\n"))
        .ends_with(1, &["error:", &wrong]);
}

#[test]
fn a_target_that_matches_nothing_is_told_with_the_candidates() {
    Mistake::new()
        .replace("[adapter]\n", "[adapter]\ntargets = [\"q_proj\"]\n")
        .ends_with(1, &["error:", "q_proj", "query"]);
}

#[test]
fn a_qlora_adapter_runs_on_no_other_base_than_its_own() {
    let home = tempfile::tempdir().unwrap();
    let project = Project::tiny(home.path());
    let ctl = |arguments: &str| Ctl::new(CTL, home.path()).args(arguments).in_folder(home.path());
    let train = project.train(&TrainOptions { adapter: "qlora", ..TrainOptions::default() });
    ctl("run --output trained").arg(train).end().expect(0);
    let document = std::fs::read_to_string(project.evaluate()).unwrap();
    let with_adapter = |base: &str| {
        let table = format!("[adapter]\nsource = \"file:trained/adapter\"\nbase = \"{base}\"\n\n[bootstrap]");
        document.replace("[bootstrap]", &table)
    };
    let own = project.write("own.toml", &with_adapter("own"));
    ctl("run --output own").arg(&own).end().expect(0);
    let full = project.write("full.toml", &with_adapter("full_precision"));
    ctl("run --output full").arg(&full).end().expect(0);
    // The same shapes with other weights.
    flip_a_weight(&project.folder.join("model/model.safetensors"));
    ctl("run --output other").arg(&own).end().expect(1).says(&["error:", "base", "user_error"]);
    assert!(!home.path().join("other").exists());
}

fn flip_a_weight(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// The row of `old`, the last word, becomes NaN; the data say it at row 60 for the first time.
#[test]
fn a_loss_that_is_not_a_number_ends_the_job_and_keeps_the_last_good_checkpoint() {
    let mistake = Mistake::new();
    let path = mistake.path("model/model.safetensors");
    let mut weights = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    // Word embeddings are the first tensor; `old` is token 44 of 32 values each.
    let row = 8 + header + 44 * 32 * 4;
    for value in weights[row..row + 128].chunks_exact_mut(4) {
        value.copy_from_slice(&f32::NAN.to_le_bytes());
    }
    let all = pairs(300, 3);
    let clean = all.lines().filter(|line| !line.contains("old")).map(|line| format!("{line}\n"));
    let mut lines: Vec<String> = clean.take(90).collect();
    lines[60] = "{\"sentence1\": \"old bond\", \"sentence2\": \"new bond\", \"score\": 0.5}\n".to_owned();
    let mistake = mistake
        .replace("log_every = 1", "log_every = 1\nshuffle = false")
        .replace("every = \"5 steps\"", "every = \"3 steps\"")
        .replace("\n[[evaluate]]\ntask = \"sts\"\ndata = \"test.jsonl\"\n", "")
        .write("model/model.safetensors", &weights)
        .write("train.jsonl", lines.concat().as_bytes());
    mistake.run().expect(1).says(&["error:", "numerics"]);
    let kept = std::fs::read_dir(mistake.path("result/checkpoints")).unwrap().flatten();
    let kept: Vec<_> = kept.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    // 8 rows a step: row 60 is in step 8, the last checkpoint before is that of step 6.
    assert!(kept.contains(&"step-6".to_owned()) && !kept.contains(&"step-9".to_owned()), "{kept:?}");
    assert!(!mistake.path("result/adapter").exists());
}
