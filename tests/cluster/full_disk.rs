//! A node whose disk fills up while a job writes its checkpoints: told with the remedy, nothing half-written, and the
//! job goes on from its last good checkpoint once there is room.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use motley_tests::data::{Project, TrainOptions};
use motley_tests::fleet::Fleet;
use motley_tests::process::wait_for;

use crate::CTL;

/// Bytes left on the full disk: enough for log lines and the end report, too little for a checkpoint of the tiny
/// model (about 150 KB).
const LEFT: u64 = 48 << 10;

/// Needs a disk that a test may fill: a small tmpfs, say.
#[test]
fn a_disk_that_fills_up_while_checkpointing_costs_no_more_than_the_time_since_the_last_one() {
    let Some(disk) = std::env::var_os("MOTLEY_TEST_SMALL_DISK") else {
        motley_tests::say_skipped("MOTLEY_TEST_SMALL_DISK names no folder on a small disk");
        return;
    };
    let disk = tempfile::tempdir_in(disk).unwrap();
    let fleet = Fleet::start(CTL);
    std::os::unix::fs::symlink(disk.path(), fleet.path("node-a")).unwrap();
    let agent = fleet.start_agent("node-a");
    let project = Project::tiny(&fleet.path("."));
    let options = TrainOptions { rows: 400, epochs: 40, checkpoint_steps: 2, ..TrainOptions::default() };
    let job = fleet.submit(&project.train(&options));
    let checkpoints = agent.attempt(job, 1).join("checkpoints");
    wait_for("a checkpoint", || has_checkpoint(&checkpoints).then_some(()));

    let filler = disk.path().join("filler");
    fill(&filler);
    let attempt = wait_for("the end of the attempt", || {
        let attempt = fleet.job(job)["attempts"][0].clone();
        attempt["reason"].is_string().then_some(attempt)
    });
    assert_eq!(attempt["reason"], "infra", "{attempt:#}");
    let log = fleet.ctl(&format!("logs {job} --attempt 1")).end().expect(0).stdout;
    for words in ["cannot be written", "the disk is full", "last good checkpoint"] {
        assert!(log.contains(words), "no `{words}` in\n{log}");
    }
    std::fs::remove_file(&filler).unwrap();

    let view = fleet.wait_for_end(job);
    assert_eq!(view["state"], "succeeded", "{view:#}");
    let attempts = view["attempts"].as_array().unwrap();
    let resumed = attempts.last().unwrap()["resumed_from_step"].as_u64();
    assert!(resumed.is_some_and(|step| step > 0 && step < options.steps()), "{view:#}");
}

fn has_checkpoint(checkpoints: &Path) -> bool {
    let entries = std::fs::read_dir(checkpoints).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().starts_with("step-"))
}

fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    let length = file.metadata().unwrap().len();
    file.set_len(length.saturating_sub(LEFT)).unwrap();
}
