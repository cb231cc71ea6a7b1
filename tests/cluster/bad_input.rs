//! What a user can get wrong before anything runs: message, remedy and exit code, and nothing half-written.

use std::net::{TcpListener, UdpSocket};

use motley_tests::data::{Project, TrainOptions};
use motley_tests::process::Ctl;
use tempfile::TempDir;

use crate::CTL;

/// A project whose document is changed in one place, and run.
pub(crate) struct Mistake {
    home: TempDir,
    pub(crate) project: Project,
    document: String,
}

impl Mistake {
    pub(crate) fn new() -> Mistake {
        let home = tempfile::tempdir().unwrap();
        let project = Project::tiny(home.path());
        let document = std::fs::read_to_string(project.train(&TrainOptions::default())).unwrap();
        Mistake { home, project, document }
    }

    pub(crate) fn replace(mut self, from: &str, to: &str) -> Self {
        assert!(self.document.contains(from), "the document has no `{from}`");
        self.document = self.document.replace(from, to);
        self
    }

    pub(crate) fn write(self, name: &str, bytes: &[u8]) -> Self {
        std::fs::write(self.project.folder.join(name), bytes).unwrap();
        self
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.home.path().join(name)
    }

    /// Runs the document, checks code and words, and that there is no result.
    #[track_caller]
    pub(crate) fn ends_with(&self, code: i32, words: &[&str]) {
        self.run().expect(code).says(words);
        assert!(!self.path("result").exists(), "a failed run left results");
        let leftovers = std::fs::read_dir(self.home.path()).unwrap().flatten();
        let leftovers: Vec<_> = leftovers
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.contains("motley-run-") || name.contains(".partial"))
            .collect();
        assert!(leftovers.is_empty(), "left behind: {leftovers:?}");
    }

    pub(crate) fn run(&self) -> motley_tests::process::Ended {
        let path = self.project.write("tiny.toml", &self.document);
        let ctl =
            Ctl::new(CTL, self.home.path()).arg("run").arg(path).arg("--output").arg(self.path("result"));
        ctl.in_folder(self.home.path()).end()
    }
}

#[test]
fn documents_that_cannot_be_read_are_refused_with_line_and_remedy() {
    Mistake::new().replace("kind = \"train\"", "kind = ").ends_with(2, &["error:", "tiny.toml", "line 2"]);
    Mistake::new()
        .replace("epochs =", "epoch =")
        .ends_with(2, &["error:", "unknown key", "epoch", "hint:", "epochs"]);
    Mistake::new().replace("version = 1", "version = 2").ends_with(2, &["error:", "version"]);
    Mistake::new().replace("rank = 4", "rank = -4").ends_with(2, &["error:", "adapter.rank"]);
    Mistake::new().replace("memory = \"256MiB\"", "memory = \"256\"").ends_with(2, &["error:", "memory"]);
    Mistake::new()
        .replace("[data]\ntrain", "[data]\nvalidation")
        .ends_with(2, &["data.train", "missing", "hint:"]);
}

#[test]
fn files_that_are_not_there_are_named() {
    Mistake::new()
        .replace("train = \"train.jsonl\"", "train = \"absent.jsonl\"")
        .ends_with(3, &["data.train", "absent.jsonl", "hint:"]);
    Mistake::new()
        .replace("file:model", "file:no-model")
        .ends_with(3, &["model.source", "no-model", "hint:"]);
    let home = tempfile::tempdir().unwrap();
    Ctl::new(CTL, home.path()).args("run nowhere.toml").in_folder(home.path()).end().expect(3).says(&[
        "error:",
        "nowhere.toml",
        "hint:",
    ]);
}

#[test]
fn a_model_that_no_hub_has_is_told_with_every_place_that_was_tried() {
    Mistake::new()
        .replace("file:model", "nobody/no-model")
        .ends_with(1, &["error:", "nobody/no-model", "hint:"]);
}

#[test]
fn memory_that_does_not_fit_is_refused_before_the_start_with_the_figures() {
    Mistake::new().replace("256MiB", "100TiB").ends_with(2, &["error:", "100TiB", "GiB", "hint:"]);
}

#[test]
fn a_device_that_is_not_there_is_told() {
    Mistake::new().replace("[\"cpu\"]", "[\"cuda\"]").ends_with(2, &["error:", "cuda", "hint:"]);
}

#[test]
fn settings_are_checked_as_the_document_is() {
    let home = tempfile::tempdir().unwrap();
    let document = Project::tiny(home.path()).train(&TrainOptions::default());
    let run = |setting: &str| {
        let ctl = Ctl::new(CTL, home.path()).arg("run").arg(&document).arg("--set").arg(setting);
        ctl.in_folder(home.path()).end()
    };
    run("train.epoch=3").expect(2).says(&["epoch"]);
    run("train.epochs=many").expect(2).says(&["train.epochs"]);
    run("epochs").expect(2).says(&["KEY=VALUE"]);
    assert!(!home.path().join("tiny-output").exists());
}

#[test]
fn unusable_command_lines_end_with_2() {
    let home = tempfile::tempdir().unwrap();
    for line in ["fly", "show", "show seven", "show 0", "token create --user anna", "logs 1 --attempt x"] {
        Ctl::new(CTL, home.path()).args(line).end().expect(2).says(&["error:"]);
    }
    Ctl::new(CTL, home.path()).args("--help").end().expect(0);
    Ctl::new(CTL, home.path()).args("--version").end().expect(0);
}

#[test]
fn without_an_identity_the_remedy_is_told() {
    let home = tempfile::tempdir().unwrap();
    for line in ["jobs", "nodes", "show 1", "token create"] {
        Ctl::new(CTL, home.path()).args(line).end().expect(4).says(&["error:", "hint:", "ctl login"]);
    }
}

#[test]
fn a_port_in_use_is_told_by_scheduler_and_by_server() {
    let home = tempfile::tempdir().unwrap();
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let scheduler = Ctl::new(CTL, home.path())
        .args("scheduler --listen")
        .arg(taken.local_addr().unwrap().to_string())
        .arg("--state")
        .arg(home.path().join("state"));
    scheduler.end().expect(1).says(&["error:", &taken.local_addr().unwrap().to_string(), "hint:"]);

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let project = Project::tiny(home.path());
    let address = taken.local_addr().unwrap().to_string();
    let run = Ctl::new(CTL, home.path()).arg("run").arg(project.serve());
    let run = run.args(&format!("--set api.listen={address}")).in_folder(home.path());
    run.end().expect(1).says(&["error:", &address, "in use", "hint:"]);
}
