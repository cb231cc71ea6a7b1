//! The same job on every device of this machine: what `ctl devices` lists beside the cpu is used, software devices too;
//! where there is none, that is said. Kernels are held to their specifications by `backends/tests/conformance`, and what
//! only a card can show (speed, memory) by `card.sh`.

// Helpers of tests, outside of #[test] functions, fail by panicking too.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use motley_tests::data::{Project, TrainOptions};
use motley_tests::process::Ctl;
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
