//! The last lines of `ctl run`: the metric before and after, and where things are. Read from `report.json`.

use std::path::Path;

use serde_json::Value;

use crate::output::table::{Table, facts};

/// The report in a folder of results, if there is one.
pub(super) fn read(folder: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(folder.join("report.json")).ok()?).ok()
}

/// What the job came to, and where to find it.
pub(super) fn text(report: Option<&Value>, folder: &Path) -> String {
    let scores = report.map(scores).unwrap_or_default();
    let places = [
        ("adapter", "adapter"),
        ("model", "model"),
        ("checkpoints", "checkpoints"),
        ("report", "report.json"),
        ("log", "log.jsonl"),
    ];
    let exists = |(what, name): &(&'static str, &str)| {
        let path = folder.join(name);
        path.exists().then(|| (*what, path.display().to_string()))
    };
    let places: Vec<(&str, String)> = places.iter().filter_map(exists).collect();
    match (scores.is_empty(), places.is_empty()) {
        (_, true) => format!("results in {}\n", folder.display()),
        (true, false) => facts(&places),
        (false, false) => format!("{scores}\n{}", facts(&places)),
    }
}

/// A line a task: before and after training, or the one value of an evaluation; beside it what word overlap alone
/// comes to, where it was measured. The figure is the one that the interval belongs to, which for pair classification
/// is not MTEB's main score.
fn scores(report: &Value) -> String {
    let tasks = |key: &str| report[key].as_array().cloned().unwrap_or_default();
    let (before, after) = (tasks("before"), tasks("results"));
    if after.is_empty() {
        return String::new();
    }
    let trained = !before.is_empty();
    let compared = after.iter().any(|task| task["baseline"].is_object());
    let mut header = vec!["TASK", "METRIC"];
    header.extend(compared.then_some("WORD OVERLAP"));
    header.extend_from_slice(if trained { &["BEFORE", "AFTER", "CHANGE"] } else { &["SCORE"] });
    let figures: Vec<usize> = (2..header.len()).collect();
    header.push("95 % INTERVAL");
    let mut table = Table::new(&header, &figures);
    for task in &after {
        let earlier = before.iter().find(|other| other["task_name"] == task["task_name"]);
        let mut row = vec![word(&task["task_name"]), word(&task["examples"]["metric"])];
        if compared {
            row.push(
                task["baseline"]["score"].as_f64().map(|score| format!("{score:.4}")).unwrap_or_default(),
            );
        }
        let now = score(task);
        if trained {
            let then = earlier.and_then(score);
            let change = now.zip(then).map(|(now, then)| format!("{:+.4}", now - then));
            row.push(figure(then));
            row.push(figure(now));
            row.push(change.unwrap_or_default());
        } else {
            row.push(figure(now));
        }
        row.push(interval(task));
        table.row(row);
    }
    table.render()
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn score(task: &Value) -> Option<f64> {
    task["scores"]["test"][0][task["examples"]["metric"].as_str()?].as_f64()
}

fn figure(score: Option<f64>) -> String {
    score.map_or_else(|| "no value".to_owned(), |score| format!("{score:.4}"))
}

fn interval(task: &Value) -> String {
    let bound = |key: &str| task["interval"][key].as_f64();
    match (bound("low"), bound("high")) {
        (Some(low), Some(high)) => format!("{low:.4} to {high:.4}"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn task(score: f64) -> Value {
        json!({ "task_name": "test", "main_metric": "max_ap", "examples": { "metric": "cosine_ap" },
                "scores": { "test": [{ "main_score": 0.99, "cosine_ap": score }] },
                "interval": { "low": 0.8, "high": 0.9 } })
    }

    #[test]
    fn a_training_shows_before_and_after() {
        let report = json!({ "before": [task(0.61234)], "results": [task(0.87)] });
        assert_eq!(
            scores(&report),
            "TASK  METRIC     BEFORE   AFTER   CHANGE  95 % INTERVAL\n\
             test  cosine_ap  0.6123  0.8700  +0.2577  0.8000 to 0.9000\n"
        );
    }

    #[test]
    fn word_overlap_stands_beside_the_score() {
        let mut measured = task(0.87);
        measured["baseline"] = json!({ "method": "word_overlap", "metric": "cosine_ap", "score": 0.18071 });
        let mut other = task(0.5);
        other["task_name"] = "search".into();
        assert_eq!(
            scores(&json!({ "results": [measured, other] })),
            "TASK    METRIC     WORD OVERLAP   SCORE  95 % INTERVAL\n\
             test    cosine_ap        0.1807  0.8700  0.8000 to 0.9000\n\
             search  cosine_ap                0.5000  0.8000 to 0.9000\n"
        );
    }

    #[test]
    fn an_evaluation_shows_its_score() {
        let report = json!({ "before": [], "results": [task(0.87)] });
        assert!(scores(&report).contains("cosine_ap  0.8700"));
        assert_eq!(scores(&json!({ "results": [] })), "");
    }
}
