//! `ctl run`: one command from the document to the results, and nothing left behind, whatever ends it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use motley_tests::data::{Project, TrainOptions};
use motley_tests::process::{Ctl, Running, is_alive, send_signal, wait_for};
use rustix::process::Signal;
use serde_json::Value;

use crate::CTL;
use crate::jobs::endless;

/// Temporary stores in the folder that stands in for the machine's.
fn stores(home: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(home).unwrap().flatten().map(|entry| entry.path());
    entries
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains("motley-run-")))
        .collect()
}

/// Processes of the program under test with this folder in their command line.
fn processes(home: &Path) -> Vec<i32> {
    let home = home.to_string_lossy().into_owned();
    let own = std::process::id() as i32;
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok());
    let named = pids.filter(|pid| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        *pid != own && is_alive(*pid) && String::from_utf8_lossy(&command).contains(&home)
    });
    named.collect()
}

pub(crate) fn nothing_is_left(home: &Path) {
    wait_for("the end of every process", || processes(home).is_empty().then_some(()));
    wait_for("the end of every temporary store", || stores(home).is_empty().then_some(()));
}

#[test]
fn one_command_trains_and_leaves_everything_in_one_folder() {
    let home = tempfile::tempdir().unwrap();
    let project = Project::tiny(home.path());
    let document = project.train(&TrainOptions { adapter: "qlora", ..TrainOptions::default() });
    let output = home.path().join("result");
    let ended =
        Ctl::new(CTL, home.path()).arg("run").arg(&document).arg("--output").arg(&output).end().expect(0);
    for word in ["cosine_spearman", "BEFORE", "AFTER", "adapter", &output.display().to_string()] {
        assert!(ended.stdout.contains(word), "no `{word}` in\n{}", ended.stdout);
    }
    for name in
        ["adapter/adapter_config.json", "adapter/adapter_model.safetensors", "report.json", "log.jsonl"]
    {
        assert!(output.join(name).is_file(), "{name} is missing");
    }
    assert!(output.join("tensorboard").is_dir());
    let checkpoints: Vec<_> = std::fs::read_dir(output.join("checkpoints")).unwrap().flatten().collect();
    assert!(!checkpoints.is_empty());
    nothing_is_left(home.path());
    let again = Ctl::new(CTL, home.path()).arg("run").arg(&document).arg("--output").arg(&output).end();
    again.expect(2).says(&["not empty", "hint:"]);
}

#[test]
fn a_setting_overrides_the_document_and_the_default_folder_has_the_jobs_name() {
    let home = tempfile::tempdir().unwrap();
    let project = Project::tiny(home.path());
    let document = project.train(&TrainOptions::default());
    let run = || {
        Ctl::new(CTL, home.path())
            .args("run --json --set train.max_steps=3 --set name=short --backend cpu")
            .arg(&document)
            .in_folder(home.path())
            .end()
            .expect(0)
            .json()
    };
    let first = run();
    assert_eq!(first["state"], "succeeded");
    assert_eq!(first["report"]["training"]["steps"], 3);
    assert!(home.path().join("short-output/report.json").is_file());
    // The first result stays as it is.
    assert_eq!(run()["folder"], "short-output-2");
}

#[test]
fn a_folder_that_cannot_be_filled_is_refused_before_anything_is_computed() {
    let home = tempfile::tempdir().unwrap();
    let project = Project::tiny(home.path());
    let document = project.train(&endless());
    std::fs::write(home.path().join("file"), "x").unwrap();
    let run = Ctl::new(CTL, home.path()).arg("run").arg(&document).args("--output file/x");
    let ended = run.in_folder(home.path()).end().expect(1).says(&["cannot write", "file/x", "hint:"]);
    assert!(!ended.stderr.contains("loss"), "{}", ended.stderr);
    nothing_is_left(home.path());
}

#[test]
fn results_that_cannot_be_copied_are_kept_and_can_be_fetched() {
    let home = tempfile::tempdir().unwrap();
    let project = Project::tiny(home.path());
    let document = project.train(&TrainOptions::default());
    let run = || Ctl::new(CTL, home.path()).arg("run").arg(&document).in_folder(home.path());
    let mut first = run().start(&home.path().join("first.log"));
    wait_for("the reservation", || home.path().join("tiny-output").is_dir().then_some(()));
    // Another run of the same name takes the next folder, and says so at once.
    let second = run().end().expect(0);
    assert!(second.stderr.contains("tiny-output is in use"), "{}", second.stderr);
    assert_eq!(first.wait().code(), Some(0), "{}", first.stderr_text());
    for folder in ["tiny-output", "tiny-output-2"] {
        assert!(home.path().join(folder).join("report.json").is_file(), "{folder}");
    }

    let mut third = run().args("--output taken").start(&home.path().join("third.log"));
    wait_for("the reservation", || home.path().join("taken").is_dir().then_some(()));
    std::fs::write(home.path().join("taken/precious"), "x").unwrap();
    assert_eq!(third.wait().code(), Some(2), "{}", third.stderr_text());
    let said = third.stderr_text();
    assert!(said.contains("the results are kept in"), "{said}");
    let store = stores(home.path()).pop().expect("the store is there");
    let address = said.split("--listen ").nth(1).and_then(|rest| rest.split('`').next()).expect("an address");
    let ctl = |arguments: &str| Ctl::new(CTL, home.path()).args(arguments);
    let scheduler = ctl("scheduler --listen").arg(address).arg("--state").arg(store.join("scheduler"));
    let mut scheduler = scheduler.start(&home.path().join("scheduler.log"));
    scheduler.line();
    let fetched = home.path().join("fetched");
    ctl("artifacts pull 1").arg(&fetched).arg("--identity").arg(store.join("identity")).end().expect(0);
    assert!(fetched.join("report.json").is_file());
    scheduler.kill();
    assert_eq!(std::fs::read_dir(home.path().join("taken")).unwrap().count(), 1);
}

#[test]
fn a_fallback_in_a_folder_is_uploaded_and_used() {
    let home = tempfile::tempdir().unwrap();
    let project = Project::tiny(home.path());
    let run = Ctl::new(CTL, home.path())
        .args("run --json --set train.max_steps=1 --set model.source=nobody/nothing");
    let run = run.args("--set model.fallbacks=[\"nobody/else\",\"file:model\"]");
    let run = run.arg(project.train(&TrainOptions::default())).in_folder(home.path());
    assert_eq!(run.end().expect(0).json()["state"], "succeeded");
}

#[test]
fn a_model_that_cannot_be_had_ends_the_run_once() {
    let home = tempfile::tempdir().unwrap();
    let project = Project::tiny(home.path());
    let run = Ctl::new(CTL, home.path()).args("run --set model.source=nobody/nothing");
    let ended = run.arg(project.train(&TrainOptions::default())).in_folder(home.path()).end().expect(1);
    assert_eq!(ended.stderr.matches("cannot be reached").count(), 1, "{}", ended.stderr);
    nothing_is_left(home.path());
    assert!(!home.path().join("tiny-output").exists());
}

/// A run whose model comes by a pip that never ends, and the process of that pip.
fn run_with_slow_pip(home: &Path) -> (Running, i32) {
    let project = Project::tiny(home);
    let (folder, pid) = (home.join("bin"), home.join("pip.pid"));
    std::fs::create_dir(&folder).unwrap();
    let shown = pid.display();
    let script = format!("#!/bin/sh\necho $$ > {shown}.part\nmv {shown}.part {shown}\nexec sleep 100000\n");
    std::fs::write(folder.join("pip"), script).unwrap();
    std::fs::set_permissions(folder.join("pip"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let run = Ctl::new(CTL, home).args("run --set model.source=pip:slow-model").env("PATH", path);
    let running =
        run.arg(project.train(&TrainOptions::default())).in_folder(home).start(&home.join("run.log"));
    let pid = wait_for("pip", || std::fs::read_to_string(&pid).ok()?.trim().parse().ok());
    (running, pid)
}

#[test]
fn killing_a_run_ends_its_pip() {
    let home = tempfile::tempdir().unwrap();
    let (mut running, pip) = run_with_slow_pip(home.path());
    let store = stores(home.path()).pop().expect("the store is there");
    assert_eq!(std::fs::metadata(store).unwrap().permissions().mode() & 0o777, 0o700);
    running.kill();
    nothing_is_left(home.path());
    wait_for("the end of pip", || (!is_alive(pip)).then_some(()));
    assert!(!home.path().join("tiny-output").exists());
}

#[test]
fn interrupting_a_run_ends_its_pip() {
    let home = tempfile::tempdir().unwrap();
    let (mut running, pip) = run_with_slow_pip(home.path());
    running.signal(Signal::INT);
    assert_eq!(running.wait().code(), Some(1), "{}", running.stderr_text());
    assert!(!is_alive(pip), "pip still runs");
    assert!(running.stderr_text().contains("was cancelled"), "{}", running.stderr_text());
    nothing_is_left(home.path());
}

#[test]
fn a_second_interrupt_ends_a_run_at_once() {
    let home = tempfile::tempdir().unwrap();
    let (mut running, pip) = run_with_slow_pip(home.path());
    // Stopped, the runner cannot obey the first one.
    for runner in processes(home.path()).into_iter().filter(|pid| is_runner(*pid)) {
        send_signal(runner, Signal::STOP);
    }
    running.signal(Signal::INT);
    wait_for("the first to be heard", || running.stderr_text().contains("cancelling").then_some(()));
    running.signal(Signal::INT);
    assert_eq!(running.wait().code(), Some(1), "{}", running.stderr_text());
    assert!(running.stderr_text().contains("ended at once"), "{}", running.stderr_text());
    nothing_is_left(home.path());
    wait_for("the end of pip", || (!is_alive(pip)).then_some(()));
}

fn is_runner(pid: i32) -> bool {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command.split(|byte| *byte == 0).nth(1) == Some(b"runner")
}

#[test]
fn killing_a_run_leaves_no_process_and_no_folder() {
    let home = tempfile::tempdir().unwrap();
    let project = Project::tiny(home.path());
    let document = project.train(&endless());
    let mut run = Ctl::new(CTL, home.path()).arg("run").arg(&document).in_folder(home.path());
    run = run.args("--output never");
    let mut running = run.start(&home.path().join("run.log"));
    wait_for("training", || running.stderr_text().contains("loss").then_some(()));
    assert!(processes(home.path()).len() >= 3, "ctl, its sweeper and a runner");
    running.kill();
    nothing_is_left(home.path());
    assert!(!home.path().join("never").exists());
}

#[test]
fn an_interrupted_run_is_cancelled_and_keeps_its_last_checkpoint() {
    let home = tempfile::tempdir().unwrap();
    let project = Project::tiny(home.path());
    let document = project.train(&endless());
    let run =
        Ctl::new(CTL, home.path()).arg("run").arg(&document).args("--output kept").in_folder(home.path());
    let mut running = run.start(&home.path().join("run.log"));
    wait_for("training", || running.stderr_text().contains("loss").then_some(()));
    running.signal(Signal::INT);
    let status = running.wait();
    assert_eq!(status.code(), Some(1), "{}", running.stderr_text());
    assert!(running.stderr_text().contains("cancelled"), "{}", running.stderr_text());
    let kept: Vec<_> = std::fs::read_dir(home.path().join("kept/checkpoints")).unwrap().flatten().collect();
    assert!(!kept.is_empty());
    nothing_is_left(home.path());
}

#[test]
fn a_served_model_answers_and_drains() {
    let home = tempfile::tempdir().unwrap();
    let project = Project::tiny(home.path());
    let run = Ctl::new(CTL, home.path()).args("run --json").arg(project.serve()).in_folder(home.path());
    let mut running = run.start(&home.path().join("run.log"));
    let line: Value = serde_json::from_str(&running.line()).unwrap();
    let endpoint = line["endpoint"].as_str().unwrap().to_owned();
    let address = endpoint.trim_start_matches("http://").split('/').next().unwrap().to_owned();
    let models = request(&address, "GET /v1/models", "");
    assert!(models.contains("\"vectors\""), "{models}");
    let body = r#"{"model": "vectors", "input": ["rate cut", "bond yield"], "encoding_format": "float"}"#;
    let answer = request(&address, "POST /v1/embeddings", body);
    let answer: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(answer["data"].as_array().map(Vec::len), Some(2), "{answer}");
    assert_eq!(answer["data"][1]["embedding"].as_array().map(Vec::len), Some(32));
    running.signal(Signal::TERM);
    assert_eq!(running.wait().code(), Some(0), "{}", running.stderr_text());
    // Which includes whoever listened; the port itself may be somebody else's by now.
    nothing_is_left(home.path());
}

/// One HTTP request, read to the end of the connection.
fn request(address: &str, what: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    write!(
        stream,
        "{what} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn texts_are_embedded_without_any_server() {
    let home = tempfile::tempdir().unwrap();
    let _project = Project::tiny(home.path());
    let write = |name: &str, text: &str| std::fs::write(home.path().join(name), text).unwrap();
    write("texts.txt", "rate cut\n\nbond yield rises\n");
    write("texts.jsonl", "{\"text\": \"rate cut\"}\n{\"text\": \"\"}\n{\"text\": \"bond yield rises\"}\n");
    let embed = |input: &str, output: &str| {
        Ctl::new(CTL, home.path())
            .args(&format!("embed file:model {input} --threads 1 --output {output}"))
            .in_folder(home.path())
            .end()
    };
    embed("texts.txt", "a.npy").expect(0);
    embed("texts.jsonl", "b.npy").expect(0);
    let (a, b) = (
        std::fs::read(home.path().join("a.npy")).unwrap(),
        std::fs::read(home.path().join("b.npy")).unwrap(),
    );
    assert!(a.starts_with(b"\x93NUMPY"));
    assert!(String::from_utf8_lossy(&a[..128]).contains("(3, 32)"), "three rows, the empty text among them");
    assert_eq!(a, b);
    embed("texts.txt", "c.jsonl").expect(0);
    assert_eq!(std::fs::read_to_string(home.path().join("c.jsonl")).unwrap().lines().count(), 3);
    embed("absent.txt", "d.npy").expect(3).says(&["absent.txt", "hint:"]);
    embed("texts.txt", "d.bin").expect(2).says(&[".npy"]);
    write("bad.jsonl", "{\"text\": \"rate\"}\n{\"texts\": \"cut\"}\n");
    embed("bad.jsonl", "d.npy").expect(1).says(&["bad.jsonl", "2", "text"]);
    assert!(!home.path().join("d.npy").exists());
}

#[test]
fn an_adapter_is_merged_and_compared() {
    let home = tempfile::tempdir().unwrap();
    let project = Project::tiny(home.path());
    let ctl = |arguments: &str| Ctl::new(CTL, home.path()).args(arguments).in_folder(home.path());
    // Long enough for another order of the pairs.
    let long = TrainOptions { epochs: 12, ..TrainOptions::default() };
    ctl("run --output trained").arg(project.train(&long)).end().expect(0);
    ctl("export file:model --adapter trained/adapter --output merged").end().expect(0);
    for name in
        ["config.json", "tokenizer.json", "model.safetensors", "modules.json", "1_Pooling/config.json"]
    {
        assert!(home.path().join("merged").join(name).is_file(), "{name} is missing");
    }
    let document = project.evaluate();
    ctl("run --output base").arg(&document).end().expect(0);
    ctl("run --output tuned --set model.source=file:merged").arg(&document).end().expect(0);
    ctl("evaluate compare base base").end().expect(0);
    let compared = ctl("evaluate compare base tuned/report.json --tolerance 2 --json").end().expect(0).json();
    assert_eq!(compared["worse"], false);
    let difference = compared["tasks"][0]["difference"].as_f64().unwrap();
    assert!(difference != 0.0, "the training changed nothing: {compared:#}");
    let (better, worse) = if difference > 0.0 { ("tuned", "base") } else { ("base", "tuned") };
    ctl(&format!("evaluate compare {better} {worse}")).end().expect(1).says(&["worse"]);
    ctl("evaluate compare base nowhere").end().expect(3).says(&["nowhere"]);
}
