//! Vectors by the real program: served and embedded ones are the same, and an early end leaves nothing behind.

use std::io::Read;
use std::path::Path;

use motley_tests::data::{Project, TrainOptions};
use motley_tests::process::{Ctl, Ended, Running, wait_for};
use motley_tests::serving::{self, ask, served_vectors, vectors_of_file};
use rustix::process::Signal;
use serde_json::json;

use crate::CTL;
use crate::embedded::nothing_is_left;

fn ctl(home: &Path, arguments: &str) -> Ctl {
    Ctl::new(CTL, home).args(arguments).in_folder(home)
}

/// Runs a serve job; gives it with its address.
fn serve(home: &Path, document: &Path, settings: &str) -> (Running, String) {
    serving::serve(ctl(home, "run --json").arg(document).args(settings), &home.join("serve.log"))
}

#[test]
fn served_vectors_are_those_of_embed_with_an_adapter_and_merged() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let project = Project::tiny(home);
    ctl(home, "run --output trained").arg(project.train(&TrainOptions::default())).end().expect(0);
    ctl(home, "export file:model --adapter trained/adapter --output merged").end().expect(0);
    let texts = ["rate cut", "the central bank holds its policy rate", "bond", "stock falls on credit risk"];
    std::fs::write(home.join("texts.txt"), texts.join("\n")).unwrap();
    let mut found = Vec::new();
    for (name, embed, settings) in [
        ("base", "file:model", ""),
        ("adapter", "file:model --adapter trained/adapter", "--set adapter.source=file:trained/adapter"),
        ("merged", "file:merged", "--set model.source=file:merged"),
    ] {
        ctl(home, &format!("embed {embed} texts.txt --threads 1 --output {name}.jsonl")).end().expect(0);
        let embedded = vectors_of_file(&home.join(format!("{name}.jsonl")));
        let (mut running, address) = serve(home, &project.serve(), settings);
        assert_eq!(served_vectors(&address, &texts), embedded, "{name}");
        running.signal(Signal::TERM);
        assert_eq!(running.wait().code(), Some(0), "{}", running.stderr_text());
        found.push(embedded.concat());
    }
    let differences = |left: &[f32], right: &[f32]| {
        left.iter().zip(right).map(|(left, right)| (left - right).abs()).fold(0f32, f32::max)
    };
    assert!(differences(&found[0], &found[1]) > 1e-3, "the adapter changes the vectors");
    assert!(differences(&found[1], &found[2]) < 1e-5, "merging does not");
}

#[test]
fn vectors_come_in_the_order_of_the_texts_over_many_windows() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let _project = Project::tiny(home);
    let words = motley_tests::model::WORDS;
    // Lengths differ, so that the texts of a window are computed in another order than they are written.
    let text = |number: usize| {
        let word = |place: usize| words[(number / 7usize.pow(place as u32) + place) % words.len()];
        (0..=number % 5).map(word).collect::<Vec<_>>().join(" ")
    };
    let texts: Vec<String> = (0..5000).map(text).collect();
    std::fs::write(home.join("all.txt"), texts.join("\n")).unwrap();
    let reversed: Vec<&str> = texts.iter().rev().map(String::as_str).collect();
    std::fs::write(home.join("reversed.txt"), reversed.join("\n")).unwrap();
    for name in ["all", "reversed"] {
        ctl(home, &format!("embed file:model {name}.txt --output {name}.jsonl")).end().expect(0);
    }
    let (all, mut reversed) =
        (vectors_of_file(&home.join("all.jsonl")), vectors_of_file(&home.join("reversed.jsonl")));
    reversed.reverse();
    assert_eq!(all.len(), 5000);
    assert!(all == reversed);
    assert_ne!(all[0], all[1]);
}

#[test]
fn a_server_that_cuts_an_answer_off_says_so_and_fails() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let project = Project::tiny(home);
    let settings = "--set batch.drain=100ms --set api.inputs_max=60000 --set batch.token_budget=65536";
    let (mut running, address) = serve(home, &project.serve(), settings);
    // The answer is larger than the buffers between two sockets, and nobody reads its end.
    let mut reader = ask(&address, &json!({"model": "vectors", "input": vec!["rate"; 60_000]}));
    reader.read_exact(&mut [0; 100]).unwrap();
    running.signal(Signal::TERM);
    assert_eq!(running.wait().code(), Some(1), "{}", running.stderr_text());
    let said = running.stderr_text();
    assert!(
        said.contains("error: 1 connections were cut") && said.contains("hint: raise batch.drain"),
        "{said}"
    );
    assert!(!said.contains("every request was answered"), "{said}");
    nothing_is_left(home);
}

#[test]
fn a_port_in_use_is_told_by_the_log_and_the_last_word_alone() {
    let home = tempfile::tempdir().unwrap();
    let project = Project::tiny(home.path());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("--set api.listen={}", taken.local_addr().unwrap());
    let ended = ctl(home.path(), "run").arg(project.serve()).args(&listen).end().expect(1);
    // The log's line may come too late to be shown before the last word.
    assert!((1..=2).contains(&ended.stderr.matches("is in use").count()), "{}", ended.stderr);
}

#[test]
fn an_interrupted_embed_leaves_no_partial_file() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let _project = Project::tiny(home);
    std::fs::write(home.join("long.txt"), "the central bank holds its policy rate\n".repeat(2_000_000))
        .unwrap();
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let embed = ctl(home, "embed file:model long.txt --threads 1 --output out.npy");
        let mut running = embed.start(&home.join("embed.log"));
        let partial = home.join(".partial-out.npy");
        let size = || std::fs::metadata(&partial).map_or(0, |metadata| metadata.len());
        wait_for("the first vectors", || (size() > 4096).then_some(()));
        running.signal(signal);
        assert_eq!(running.wait().code(), Some(code), "{}", running.stderr_text());
        assert!(running.stderr_text().contains("interrupted: nothing was written"));
        assert!(!partial.exists() && !home.join("out.npy").exists());
    }
}

#[test]
fn places_and_figures_that_cannot_be_used_are_refused_before_any_work() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let _project = Project::tiny(home);
    let rows = "{\"text\": \"rate cut\"}\n";
    std::fs::write(home.join("rows.jsonl"), rows).unwrap();
    std::fs::create_dir(home.join("folder.npy")).unwrap();
    let end = |arguments: &str| -> Ended { ctl(home, arguments).end() };
    end("embed file:model rows.jsonl --output rows.jsonl")
        .expect(2)
        .says(&["rows.jsonl is the input", "hint:"]);
    end("embed file:model rows.jsonl --output ./model/../rows.jsonl").expect(2).says(&["is the input"]);
    assert_eq!(std::fs::read_to_string(home.join("rows.jsonl")).unwrap(), rows);
    // The model is not looked at: it does not even exist.
    end("embed file:absent rows.jsonl --output folder.npy").expect(2).says(&["folder.npy is a folder"]);
    end("embed file:absent rows.jsonl --output absent/out.npy")
        .expect(1)
        .says(&["absent/out.npy cannot be written"]);
    end("embed file:model model --output out.npy").expect(2).says(&["model is a folder", "hint:"]);
    end("embed job:1 rows.jsonl --output out.npy")
        .expect(2)
        .says(&["hint: fetch them with `ctl artifacts pull 1"]);
    end("embed file:model rows.jsonl --output out.npy --full-precision").expect(2).says(&["--adapter"]);
    end("bench encode file:model --data .").expect(2).says(&[". is a folder", "sentence1"]);
    for steps in ["0", "4294967295"] {
        let bench = format!("bench train file:model --data rows.jsonl --steps {steps}");
        end(&bench).expect(2).says(&[steps, "1..=100000"]);
    }
}

#[test]
fn a_training_step_is_measured_with_its_percentiles() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let project = Project::tiny(home);
    let data = project.write("pairs.jsonl", &motley_tests::data::pairs(64, 1));
    let line =
        ctl(home, "bench train file:model --steps 3 --threads 1 --data").arg(data).end().expect(0).json();
    let figure = |key: &str| line[key].as_f64().unwrap_or_else(|| panic!("no {key} in {line}"));
    assert!(figure("ms_per_step_p50") <= figure("ms_per_step_p99"), "{line}");
    assert!(figure("ms_per_step") > 0.0 && figure("pairs_per_s") > 0.0 && figure("tokens_per_s") > 0.0);
}
