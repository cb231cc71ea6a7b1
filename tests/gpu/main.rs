//! The same job on every device of this machine: what `ctl devices` lists beside the cpu is used, software devices too;
//! where there is none, that is said. Kernels are held to their specifications by `backends/tests/conformance`, and what
//! only a card can show (speed, memory) by `card.sh`.

// Helpers of tests, outside of #[test] functions, fail by panicking too.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use motley_tests::data::{Project, TrainOptions};
use motley_tests::model::WORDS;
use motley_tests::process::Ctl;
use motley_tests::serving::{serve, served_vectors, vectors_of_file};
use rustix::process::Signal;
use serde_json::Value;

const CTL: &str = env!("CARGO_BIN_EXE_ctl-under-test");

/// The driver's own variables are passed on, everything else of the user is not.
fn ctl(home: &Path) -> Ctl {
    Ctl::new(CTL, home)
}

/// Backends of this machine but the cpu.
fn accelerators(home: &Path) -> Vec<String> {
    let found = ctl(home).args("devices --json").end().expect(0).json();
    let devices = found["devices"].as_array().unwrap();
    let mut names: Vec<String> =
        devices.iter().map(|device| device["backend"].as_str().unwrap().to_owned()).collect();
    names.dedup();
    names.retain(|name| name != "cpu");
    if names.is_empty() {
        motley_tests::say_skipped("jobs on accelerators (ctl devices lists the cpu alone)");
    }
    names
}

/// Losses of three steps in f32, and the metric before and after.
fn train(home: &Path, adapter: &'static str, backend: &str) -> (Vec<f64>, Vec<f64>) {
    let folder = home.join(format!("{adapter}-{backend}"));
    std::fs::create_dir(&folder).unwrap();
    let project = Project::tiny(&folder);
    let document = project.train(&TrainOptions { adapter, ..TrainOptions::default() });
    let settings = "--set train.max_steps=3 --set resources.memory=auto --precision f32 --output out";
    let run = ctl(home).args("run --json").arg(&document).args(settings).args("--backend").arg(backend);
    let report = run.in_folder(&folder).end().expect(0).json();
    assert_eq!(report["state"], "succeeded", "{report}");
    let log = std::fs::read_to_string(folder.join("out/log.jsonl")).unwrap();
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let losses: Vec<f64> = lines.filter_map(|line| line["loss"].as_f64()).collect();
    let score = |part: &str| report["report"][part][0]["scores"]["test"][0]["main_score"].as_f64().unwrap();
    (losses, vec![score("before"), score("results")])
}

#[test]
fn a_job_learns_the_same_on_every_backend() {
    let home = tempfile::tempdir().unwrap();
    let accelerators = accelerators(home.path());
    for adapter in ["lora", "qlora"] {
        if accelerators.is_empty() {
            return;
        }
        let (losses, metrics) = train(home.path(), adapter, "cpu");
        assert_eq!(losses.len(), 3);
        for backend in &accelerators {
            let (other, other_metrics) = train(home.path(), adapter, backend);
            for (a, b) in losses.iter().zip(&other) {
                assert!((a - b).abs() <= 1e-4 * a.abs(), "{adapter} on {backend}: {losses:?}, {other:?}");
            }
            assert_eq!(losses.len(), other.len());
            for (a, b) in metrics.iter().zip(&other_metrics) {
                assert!((a - b).abs() <= 1e-3, "{adapter} on {backend}: {metrics:?}, {other_metrics:?}");
            }
        }
    }
}

#[test]
fn a_server_answers_the_same_on_every_backend() {
    let home = tempfile::tempdir().unwrap();
    let accelerators = accelerators(home.path());
    let project = Project::tiny(home.path());
    let run = |arguments: &str| ctl(home.path()).args(arguments).in_folder(home.path());
    // Requests of one text and of several, below and above the sizes of passes that a device may record.
    let texts: Vec<String> = (1..40)
        .map(|words| WORDS.iter().cycle().take(words).copied().collect::<Vec<_>>().join(" "))
        .collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    std::fs::write(home.path().join("texts.txt"), texts.join("\n")).unwrap();
    run("embed file:model texts.txt --backend cpu --output cpu.jsonl").end().expect(0);
    let wanted = vectors_of_file(&home.path().join("cpu.jsonl"));
    for backend in &accelerators {
        let settings = "--set resources.memory=auto --precision f32 --backend";
        let start = run("run --json").arg(project.serve()).args(settings).arg(backend);
        let (mut running, address) = serve(start, &home.path().join("serve.log"));
        for (texts, wanted) in
            [1, 3, texts.len()].into_iter().flat_map(|size| texts.chunks(size).zip(wanted.chunks(size)))
        {
            let got = served_vectors(&address, texts).concat();
            let worst = got.iter().zip(wanted.concat()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(got.len() == wanted.concat().len() && worst <= 2e-5, "{backend}: {worst}, {texts:?}");
        }
        running.signal(Signal::TERM);
        assert_eq!(running.wait().code(), Some(0), "{}", running.stderr_text());
    }
}
