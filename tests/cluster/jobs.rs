//! The life of a job on a fleet: submitted, followed, cancelled, its results fetched.

use motley_tests::data::{Project, TrainOptions};
use motley_tests::fleet::Fleet;
use motley_tests::process::{is_alive, wait_for};

use crate::CTL;

/// Long enough to be caught in the act; nobody waits for its end.
pub(crate) fn endless() -> TrainOptions {
    TrainOptions { name: "endless", epochs: 10_000, checkpoint_steps: 50, ..TrainOptions::default() }
}

#[test]
fn a_job_runs_from_its_submission_to_its_artifacts() {
    let fleet = Fleet::start(CTL);
    let agent = fleet.start_agent("node-a");
    let project = Project::tiny(&fleet.path("."));
    let job = fleet.submit(&project.train(&TrainOptions::default()));
    let view = fleet.wait_for_end(job);
    assert_eq!(view["state"], "succeeded", "{view:#}");
    assert_eq!(view["attempts"].as_array().map(Vec::len), Some(1), "{view:#}");
    assert_eq!(view["kind"], "train");

    let results = fleet.pull(job, "results");
    for name in
        ["adapter/adapter_config.json", "adapter/adapter_model.safetensors", "report.json", "log.jsonl"]
    {
        assert!(results.join(name).is_file(), "{name} is missing");
    }
    let curves = std::fs::read_dir(results.join("tensorboard")).unwrap().flatten().next().unwrap();
    assert!(curves.file_name().to_string_lossy().starts_with("events.out.tfevents"));
    fleet.ctl(&format!("artifacts pull {job}")).arg(&results).end().expect(2).says(&["not empty", "hint:"]);
    let state = fleet.path("state");
    fleet.ctl(&format!("artifacts pull {job} --checkpoint")).arg(&state).end().expect(0);
    assert!(std::fs::read_dir(&state).unwrap().next().is_some());

    let listed = fleet.ctl("jobs --json").end().expect(0).json();
    assert_eq!(listed["jobs"][0]["job"], job);
    let table = fleet.ctl("jobs").end().expect(0);
    assert!(table.stdout.contains("tiny") && table.stdout.contains("succeeded"), "{}", table.stdout);
    let nodes = fleet.ctl("nodes --json").end().expect(0).json();
    assert_eq!(nodes["nodes"][0]["name"], "node-a");
    assert_eq!(nodes["nodes"][0]["devices"][0]["attempts"].as_array().map(Vec::len), Some(0), "{nodes:#}");
    fleet.ctl("doctor --offline --json").end().expect(0);
    wait_for("the attempt's folder to be forgotten", || (!agent.attempt(job, 1).exists()).then_some(()));
}

#[test]
fn what_is_not_there_ends_with_exit_code_3() {
    let fleet = Fleet::start(CTL);
    for command in ["show 7", "logs 7", "logs 7 -f", "cancel 7", "artifacts pull 7 nowhere", "show 7 --watch"]
    {
        fleet.ctl(command).in_folder(&fleet.path(".")).end().expect(3).says(&["error:", "7"]);
    }
    assert!(!fleet.path("nowhere").exists());
}

#[test]
fn a_log_is_followed_to_the_end_and_reads_the_same_afterwards() {
    let fleet = Fleet::start(CTL);
    let _agent = fleet.start_agent("node-a");
    let project = Project::tiny(&fleet.path("."));
    let job = fleet.submit(&project.train(&TrainOptions { epochs: 20, ..TrainOptions::default() }));
    let followed = fleet.ctl(&format!("logs {job} -f")).end().expect(0);
    assert_eq!(fleet.job(job)["state"], "succeeded");
    let read = fleet.ctl(&format!("logs {job}")).end().expect(0);
    assert!(!read.stdout.is_empty());
    assert_eq!(followed.stdout, read.stdout);
    fleet.ctl(&format!("logs {job} --attempt 2")).end().expect(3);
}

#[test]
fn a_cancelled_job_ends_with_its_runner() {
    let fleet = Fleet::start(CTL);
    let agent = fleet.start_agent("node-a");
    let project = Project::tiny(&fleet.path("."));
    let job = fleet.submit(&project.train(&endless()));
    let runner = agent.runner(job, 1);
    wait_for("training", || (fleet.job(job)["progress"]["done"].as_u64()? > 3).then_some(()));
    fleet.ctl(&format!("cancel {job}")).end().expect(0);
    assert_eq!(fleet.wait_for_end(job)["state"], "cancelled");
    wait_for("the runner's end", || (!is_alive(runner)).then_some(()));
    fleet.ctl(&format!("show {job} --watch")).end().expect(1).says(&["cancelled"]);
    let shown = fleet.ctl(&format!("show {job}")).end().expect(0).stdout;
    let attempt = shown.lines().last().unwrap_or_default().trim_end();
    assert!(attempt.ends_with("cancelled"), "the attempt is not shown as cancelled:\n{shown}");
    // The device is free again.
    let next = fleet.submit(&project.train(&TrainOptions { name: "next", ..TrainOptions::default() }));
    assert_eq!(fleet.wait_for_end(next)["state"], "succeeded");
}

#[test]
fn the_newest_jobs_are_listed_and_all_on_request() {
    let fleet = Fleet::start(CTL);
    let project = Project::tiny(&fleet.path("."));
    let document = project.train(&TrainOptions::default());
    let jobs: Vec<u64> = (0..5).map(|_| fleet.submit(&document)).collect();
    let listed = |options: &str| {
        let list = fleet.ctl(&format!("jobs --json {options}")).end().expect(0).json();
        let jobs = list["jobs"].as_array().unwrap().iter().map(|job| job["job"].as_u64().unwrap());
        (jobs.collect::<Vec<u64>>(), list["more"] == true)
    };
    assert_eq!(listed(""), (jobs.clone(), false));
    assert_eq!(listed("--all"), (jobs.clone(), false));
    assert_eq!(listed("--limit 5"), (jobs.clone(), false));
    assert_eq!(listed("--limit 2"), (jobs[3..].to_vec(), true));
    fleet.ctl("jobs --limit 2").end().expect(0).says(&["older jobs", "--all"]);
}

#[test]
fn a_watched_submission_ends_as_its_job_does() {
    let fleet = Fleet::start(CTL);
    let _agent = fleet.start_agent("node-a");
    let project = Project::tiny(&fleet.path("."));
    let document = project.evaluate();
    let ended = fleet.ctl("submit --watch --json").arg(&document).end().expect(0).json();
    assert_eq!(ended["state"], "succeeded");
    project.write("test.jsonl", "{\"sentence1\": \"rate cut\", \"score\": 1}\n");
    fleet.ctl("submit --watch").arg(&document).end().expect(1).says(&["sentence2", "data_error"]);
}

#[test]
fn a_job_reads_what_another_has_left_behind() {
    let fleet = Fleet::start(CTL);
    let _agent = fleet.start_agent("node-a");
    let project = Project::tiny(&fleet.path("."));
    let first = fleet.submit(&project.train(&TrainOptions { adapter: "qlora", ..TrainOptions::default() }));
    let document = std::fs::read_to_string(project.evaluate()).unwrap();
    let document =
        document.replace("[bootstrap]", &format!("[adapter]\nsource = \"job:{first}\"\n\n[bootstrap]"));
    let second = fleet.submit(&project.write("measure.toml", &document));
    let view = fleet.wait_for_end(second);
    assert_eq!(view["state"], "succeeded", "{view:#}");
    let trained = report(&fleet, first, "trained");
    let measured = report(&fleet, second, "measured");
    let score = |report: &serde_json::Value| report["results"][0]["scores"]["test"][0]["main_score"].as_f64();
    assert!(score(&measured).is_some(), "{measured:#}");
    assert_eq!(score(&trained), score(&measured), "the same adapter on the same base measures the same");
    fleet
        .ctl("submit")
        .arg(project.write("lost.toml", &document.replace(&format!("job:{first}"), "job:99")))
        .end()
        .expect(3)
        .says(&["99"]);
}

fn report(fleet: &Fleet, job: u64, name: &str) -> serde_json::Value {
    let text = std::fs::read(fleet.pull(job, name).join("report.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

#[test]
fn a_job_waits_with_a_reason_while_no_node_has_the_memory() {
    let fleet = Fleet::start(CTL);
    let _agent = fleet.start_agent("node-a");
    let project = Project::tiny(&fleet.path("."));
    let document = project.train(&TrainOptions::default());
    let ended =
        fleet.ctl("submit --json --set resources.memory=100TiB").arg(&document).end().expect(0).json();
    let job = ended["job"].as_u64().unwrap();
    let view = fleet.job(job);
    assert_eq!(view["state"], "queued");
    assert!(view["waiting"].as_str().is_some_and(|waiting| waiting.contains("100TiB")), "{view:#}");
    fleet.ctl(&format!("cancel {job}")).end().expect(0);
    assert_eq!(fleet.wait_for_end(job)["state"], "cancelled");
}
