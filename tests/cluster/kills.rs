//! SIGKILL at every process of a fleet, in the middle of its work: no job is lost, and a continued training ends with
//! the same bits as an uninterrupted one.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use motley_tests::data::{Project, TrainOptions};
use motley_tests::fleet::{Agent, Fleet};
use motley_tests::process::{PATIENCE, is_alive, is_stopped, send_signal, wait_for};
use rustix::process::Signal;
use serde_json::Value;

use crate::CTL;
use crate::jobs::endless;

/// Some seconds of training with many checkpoints: 12 steps an epoch.
fn training() -> TrainOptions {
    TrainOptions { name: "survivor", epochs: 40, checkpoint_steps: 40, ..TrainOptions::default() }
}

/// When a runner is killed.
#[derive(Debug, Clone, Copy)]
enum Point {
    /// So long after the n-th checkpoint was complete.
    After { checkpoint: u64, milliseconds: u64 },
    /// While the n-th checkpoint (or the next that is caught) is being written.
    Inside { checkpoint: u64 },
}

/// Three points of the training's twelve checkpoints, one of them inside the writing of one: early, amid, late.
fn points(seed: u64) -> [Point; 3] {
    let mut state = seed;
    let mut die = |sides: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % sides
    };
    [
        Point::After { checkpoint: 1 + die(3), milliseconds: die(20) },
        Point::Inside { checkpoint: 4 + die(3) },
        Point::After { checkpoint: 7 + die(2), milliseconds: die(20) },
    ]
}

/// Of the points, unless the environment names another.
const SEED: u64 = 41;
const SEED_VARIABLE: &str = "MOTLEY_TEST_SEED";

#[test]
fn a_killed_training_continues_and_ends_with_the_same_bits() {
    let fleet = Fleet::start(CTL);
    let agent = fleet.start_agent("node-a");
    let project = Project::tiny(&fleet.path("."));
    let document = project.train(&training());
    let steps = training().steps();

    let job = fleet.submit(&document);
    assert_eq!(fleet.wait_for_end(job)["state"], "succeeded");
    let whole = Results::of(&fleet, job);
    assert_eq!(whole.log.last().unwrap()["step"], steps);

    let seed = std::env::var(SEED_VARIABLE).ok().and_then(|seed| seed.parse().ok()).unwrap_or(SEED);
    let points = points(seed);
    eprintln!(
        "seed {seed}: {points:?}; again: {SEED_VARIABLE}={seed} cargo test --release -p motley-tests --test cluster \
         killed_training"
    );
    for point in points {
        let job = fleet.submit(&document);
        let half_written = kill_at(&agent, job, point);
        let view = fleet.wait_for_end(job);
        assert_eq!(view["state"], "succeeded", "{point:?}: {view:#}");
        let attempts = view["attempts"].as_array().unwrap();
        assert_eq!(attempts.len(), 2, "{point:?}: {view:#}");
        assert_eq!(attempts[0]["reason"], "runner_lost", "{point:?}");
        let from = attempts[1]["resumed_from_step"].as_u64().unwrap_or(0);
        assert!(0 < from && from < steps, "{point:?}: the second attempt began at step {from} of {steps}");
        assert!(
            half_written.is_none_or(|step| from < step),
            "{point:?}: {from} was being written when it died"
        );
        let continued = Results::of(&fleet, job);
        rows_join(&continued.log, steps);
        assert_eq!(continued.figures(), whole.figures(), "{point:?}: the log differs");
        assert!(continued.adapter == whole.adapter, "{point:?}: the adapter differs");
    }

    let other = project.train(&TrainOptions { seed: 8, ..training() });
    let job = fleet.submit(&other);
    assert_eq!(fleet.wait_for_end(job)["state"], "succeeded");
    assert!(Results::of(&fleet, job).adapter != whole.adapter, "another seed must give another adapter");
}

/// Waits for the point, then SIGKILL. Returns the step whose checkpoint was half-written, where that was the point.
fn kill_at(agent: &Agent, job: u64, point: Point) -> Option<u64> {
    let runner = agent.runner(job, 1);
    let checkpoints = agent.attempt(job, 1).join("checkpoints");
    let every = u64::from(training().checkpoint_steps);
    let alive = || {
        assert!(is_alive(runner), "{point:?}: the training was over before it was killed; make it longer");
    };
    match point {
        Point::After { checkpoint, milliseconds } => {
            wait_for_step(&checkpoints, checkpoint * every);
            std::thread::sleep(Duration::from_millis(milliseconds));
            alive();
            send_signal(runner, Signal::KILL);
            None
        }
        Point::Inside { checkpoint } => {
            wait_for_step(&checkpoints, (checkpoint - 1) * every);
            let step = stop_inside_writing(runner, &checkpoints);
            alive();
            // The agent would take notice and tidy up while we look.
            let agent = agent.running.as_ref().expect("the agent runs");
            agent.signal(Signal::STOP);
            send_signal(runner, Signal::KILL);
            wait_for("the runner's end", || (!is_alive(runner)).then_some(()));
            assert_eq!(half_written(&checkpoints), Some(step), "it died inside the writing");
            agent.signal(Signal::CONT);
            Some(step)
        }
    }
}

/// Old checkpoints are removed while we look, so a later one counts as well.
fn wait_for_step(checkpoints: &Path, step: u64) {
    let deadline = Instant::now() + PATIENCE;
    while newest_step(checkpoints) < step {
        assert!(Instant::now() < deadline, "no checkpoint of step {step} came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn newest_step(checkpoints: &Path) -> u64 {
    let entries = std::fs::read_dir(checkpoints).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| name.strip_prefix("step-")?.parse().ok()).max().unwrap_or(0)
}

/// The step whose checkpoint is being written.
fn half_written(checkpoints: &Path) -> Option<u64> {
    let entries = std::fs::read_dir(checkpoints).into_iter().flatten().flatten();
    let mut names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.find_map(|name| name.strip_prefix(".partial-step-")?.parse().ok())
}

/// Freezes the runner while a checkpoint is half-written, and returns its step: looked at again once every thread
/// stands still, so that it is certain.
fn stop_inside_writing(runner: i32, checkpoints: &Path) -> u64 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "no checkpoint was caught half-written");
        assert!(is_alive(runner), "the training was over before a checkpoint was caught half-written");
        if half_written(checkpoints).is_none() {
            std::hint::spin_loop();
            continue;
        }
        send_signal(runner, Signal::STOP);
        wait_for("the runner to stand still", || (is_stopped(runner) || !is_alive(runner)).then_some(()));
        if let Some(step) = half_written(checkpoints) {
            return step;
        }
        send_signal(runner, Signal::CONT);
    }
}

/// What a training left behind.
struct Results {
    adapter: Vec<u8>,
    log: Vec<Value>,
}

impl Results {
    fn of(fleet: &Fleet, job: u64) -> Results {
        let folder: PathBuf = fleet.pull(job, &format!("results-{job}"));
        let log = std::fs::read_to_string(folder.join("log.jsonl")).unwrap();
        Results {
            adapter: std::fs::read(folder.join("adapter/adapter_model.safetensors")).unwrap(),
            log: log.lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
        }
    }

    /// The log without its times.
    fn figures(&self) -> Vec<Value> {
        let mut lines = self.log.clone();
        for line in lines.iter_mut().filter_map(Value::as_object_mut) {
            line.remove("seconds");
            line.remove("tokens_per_second");
        }
        lines
    }
}

/// Every step once, and its rows where the rows of the step before end.
fn rows_join(log: &[Value], steps: u64) {
    let lines: Vec<&Value> = log.iter().filter(|line| line["rows"].is_array()).collect();
    assert_eq!(lines.len() as u64, steps);
    let mut row = 0;
    for (index, line) in lines.iter().enumerate() {
        assert_eq!(line["step"], index as u64 + 1, "{line}");
        assert_eq!(line["rows"][0], row, "{line}");
        row = line["rows"][1].as_u64().unwrap();
    }
    assert_eq!(row, 96 * u64::from(training().epochs));
}

#[test]
fn a_running_job_goes_on_while_its_agent_is_killed_and_restarted() {
    let fleet = Fleet::start(CTL);
    let mut agent = fleet.start_agent("node-a");
    let project = Project::tiny(&fleet.path("."));
    let job = fleet.submit(&project.train(&training()));
    let runner = agent.runner(job, 1);
    wait_for("training", || (newest_step(&agent.attempt(job, 1).join("checkpoints")) > 0).then_some(()));
    // Frozen, so that the job cannot end before its agent is back.
    send_signal(runner, Signal::STOP);
    agent.kill();
    assert!(is_alive(runner), "the runner outlives its agent");
    fleet.restart_agent(&mut agent);
    fleet.wait_for_nodes(1);
    assert!(is_alive(runner), "the new agent leaves the runner running");
    assert_eq!(agent.runner(job, 1), runner);
    send_signal(runner, Signal::CONT);
    let view = fleet.wait_for_end(job);
    assert_eq!(view["state"], "succeeded", "{view:#}");
    assert_eq!(view["attempts"].as_array().map(Vec::len), Some(1), "{view:#}");
}

#[test]
fn no_job_is_lost_while_the_scheduler_is_killed_and_restarted() {
    let mut fleet = Fleet::start(CTL);
    let agent = fleet.start_agent("node-a");
    let project = Project::tiny(&fleet.path("."));
    let running = fleet.submit(&project.train(&training()));
    let waiting = fleet
        .ctl("submit --json --set resources.memory=100TiB")
        .arg(project.train(&TrainOptions { name: "waiting", ..TrainOptions::default() }))
        .end()
        .expect(0)
        .json()["job"]
        .as_u64()
        .unwrap();
    let runner = agent.runner(running, 1);
    wait_for("training", || (newest_step(&agent.attempt(running, 1).join("checkpoints")) > 0).then_some(()));
    let mut follower = fleet.ctl(&format!("logs {running} -f")).start(&fleet.path("follower.log"));
    // It has found the scheduler before that is killed.
    let mut followed = vec![follower.line()];
    fleet.kill_scheduler();
    fleet.ctl("jobs").end().expect(5).says(&["error:", "hint:"]);
    // The job's end falls into the time without a scheduler.
    let result = agent.attempt(running, 1).join("result.json");
    wait_for("the runner's end", || (result.exists() || !is_alive(runner)).then_some(()));
    fleet.start_scheduler();
    let view = fleet.wait_for_end(running);
    assert_eq!(view["state"], "succeeded", "{view:#}");
    assert_eq!(view["attempts"].as_array().map(Vec::len), Some(1), "{view:#}");
    assert_eq!(fleet.job(waiting)["state"], "queued");
    assert!(follower.wait().success(), "{}", follower.stderr_text());
    followed.extend(follower.rest());
    let read = fleet.ctl(&format!("logs {running}")).end().expect(0);
    assert_eq!(followed, read.stdout.lines().collect::<Vec<_>>(), "a follower misses and repeats nothing");
    fleet.ctl(&format!("cancel {waiting}")).end().expect(0);
    let next = fleet.submit(&project.train(&TrainOptions { name: "next", ..TrainOptions::default() }));
    assert_eq!(fleet.wait_for_end(next)["state"], "succeeded");
}

#[test]
fn everything_killed_at_once_comes_back() {
    let mut fleet = Fleet::start(CTL);
    let mut agent = fleet.start_agent("node-a");
    let project = Project::tiny(&fleet.path("."));
    let job = fleet.submit(&project.train(&training()));
    let runner = agent.runner(job, 1);
    wait_for("training", || (newest_step(&agent.attempt(job, 1).join("checkpoints")) > 0).then_some(()));
    fleet.kill_scheduler();
    agent.kill();
    send_signal(runner, Signal::KILL);
    fleet.start_scheduler();
    fleet.restart_agent(&mut agent);
    let view = fleet.wait_for_end(job);
    assert_eq!(view["state"], "succeeded", "{view:#}");
    assert!(view["attempts"][1]["resumed_from_step"].as_u64().is_some_and(|step| step > 0), "{view:#}");
}

#[test]
fn a_scheduler_refuses_a_state_folder_that_another_one_has() {
    let fleet = Fleet::start(CTL);
    let second = fleet.ctl("scheduler --listen 127.0.0.1:0 --state").arg(fleet.path("scheduler"));
    second.end().expect(1).says(&["error:", "scheduler"]);
    let project = Project::tiny(&fleet.path("."));
    let job = fleet.submit(&project.train(&endless()));
    assert_eq!(fleet.job(job)["state"], "queued");
}
