//! Evaluate jobs.

use super::*;
use crate::workload::WorkloadError;
use crate::workload::compare::compare;
use crate::workload::results::sha256_text;

pub(super) const STS: &str = r#"version = 1
kind = "evaluate"
name = "sts"
[model]
source = "file:model"
[[evaluate]]
task = "sts"
name = "stsb"
data = "test.jsonl"
"#;

#[test]
fn stsb_has_the_published_spearman_and_the_same_bytes_twice() {
    let (Some(model), Some(data)) = (model_folder(), shared("data/stsb/en/test.jsonl")) else { return };
    let files: [(&str, &Path); 2] = [("model.source", &model), ("evaluate.0.data/test.jsonl", &data)];
    let [first, second] = [Attempt::new(STS, &files), Attempt::new(STS, &files)];
    first.run().unwrap();
    second.run().unwrap();
    let report = first.report();
    let spearman = score(&report, "/results/0", "cosine_spearman");
    assert!((spearman - 0.82026).abs() < 0.00003, "{spearman}");
    let interval = &report["results"][0]["interval"];
    let (low, high) = (interval["low"].as_f64().unwrap(), interval["high"].as_f64().unwrap());
    assert!(low < spearman && spearman < high && high - low < 0.05, "{low} {high}");
    assert_eq!(report["results"][0]["dataset_revision"].as_str().unwrap().len(), 64);
    assert_eq!(report["program"]["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(report["data"], serde_json::json!([report["results"][0]["data"]]));
    for name in ["config", "tokenizer"] {
        let bytes = std::fs::read(model.join(format!("{name}.json"))).unwrap();
        assert_eq!(report["model"][format!("{name}_sha256")], sha256_text(&bytes));
    }
    assert_eq!((&report["model"]["pooling"], &report["model"]["normalize"]), (&"mean".into(), &true.into()));
    // Word overlap alone, by the finance example's definition.
    let baseline = &report["results"][0]["baseline"];
    assert_eq!(
        (&baseline["method"], &baseline["metric"]),
        (&"word_overlap".into(), &"cosine_spearman".into())
    );
    let overlap = baseline["score"].as_f64().unwrap();
    assert!((overlap - 0.552_21).abs() < 5e-5, "{overlap}");
    let timeless = |report: &Value| {
        let mut report = report.clone();
        report["timings"] = Value::Null;
        report["results"][0]["evaluation_time"] = Value::Null;
        report.to_string()
    };
    assert_eq!(timeless(&report), timeless(&second.report()));
    assert_eq!(first.read("scores/stsb.jsonl"), second.read("scores/stsb.jsonl"));
    let comparison = compare(&first.output(""), &second.output("report.json"), 0.0).unwrap();
    assert!(!comparison.worse && comparison.tasks[0].difference == 0.0);
}

#[test]
fn a_model_that_is_not_finite_is_not_measured() {
    let Some(model) = model_folder() else { return };
    let data = tempfile::NamedTempFile::new().unwrap();
    let row = |first: &str| format!("{{\"sentence1\": \"{first}\", \"sentence2\": \"b\", \"score\": 1}}\n");
    std::fs::write(data.path(), row("a") + &row("z")).unwrap();
    let broken = super::exporting::with_broken_token(&model, super::exporting::Z);
    let attempt =
        Attempt::new(STS, &[("model.source", broken.path()), ("evaluate.0.data/test.jsonl", data.path())]);
    let error = attempt.run().unwrap_err();
    let reason = crate::failure::workload_reason(&error);
    assert_eq!(reason, motley_scheduler_core::failure::FailureReason::Numerics, "{error}");
    assert!(!attempt.output("report.json").exists());
}

#[test]
fn pairs_and_retrieval_are_measured() {
    let (Some(model), Some(pairs), Some(folder)) =
        (model_folder(), shared("data/mrpc/test.jsonl"), shared("data/retrieval/cranfield"))
    else {
        return;
    };
    let document = r#"version = 1
kind = "evaluate"
name = "both"
[model]
source = "file:model"
max_length = 128
quantization = "nf4"
[[evaluate]]
task = "pair_classification"
name = "mrpc"
data = "test.jsonl"
[[evaluate]]
task = "retrieval"
name = "cranfield"
data = "cranfield"
[bootstrap]
resamples = 100
"#;
    let pairs = head(&pairs, 300);
    let files: [(&str, &Path); 3] = [
        ("model.source", &model),
        ("evaluate.0.data/test.jsonl", pairs.path()),
        ("evaluate.1.data", &folder),
    ];
    let attempt = Attempt::new(document, &files);
    attempt.run().unwrap();
    let report = attempt.report();
    let precision = score(&report, "/results/0", "max_ap");
    assert!(precision > 0.75 && precision < 1.0, "{precision}");
    assert!(score(&report, "/results/0", "cosine_accuracy") > 0.65);
    let gain = score(&report, "/results/1", "ndcg_at_10");
    assert!(gain > 0.2 && gain < 0.6, "{gain}");
    assert_eq!(report["model"]["quantization"]["kind"], "nf4");
    assert_eq!(report["results"][1]["data"]["rows"], 225);
}

#[test]
fn evaluations_and_servers_that_do_not_fit_are_refused_before_they_load() {
    let (Some(model), Some(data)) = (model_folder(), shared("data/stsb/en/test.jsonl")) else { return };
    let data = head(&data, 100);
    let files: [(&str, &Path); 2] = [("model.source", &model), ("evaluate.0.data/test.jsonl", data.path())];
    let stated = "[resources]\nmemory = \"64MiB\"\n[model]";
    let serve = "version = 1\nkind = \"serve\"\nname = \"v\"\n[model]\nsource = \"file:model\"\n\
                 [api]\nlisten = \"127.0.0.1:0\"\n";
    for text in [STS, serve] {
        let mut attempt = Attempt::new(&text.replace("[model]", stated), &files);
        attempt.context.spec.assignment.memory = Bytes(64 << 20);
        let error = attempt.run().unwrap_err();
        assert!(matches!(error, WorkloadError::Memory { .. }), "{error}");
        assert!(error.to_string().contains("it has 64MiB") && error.to_string().contains("nf4"), "{error}");
        let reason = crate::failure::workload_reason(&error);
        assert_eq!(reason, motley_scheduler_core::failure::FailureReason::OomHost);
    }
    // Quantized it fits, and the device is held to the limit.
    let text = STS.replace("[model]", stated).replace("file:model\"", "file:model\"\nquantization = \"nf4\"");
    let text = text.replace("64MiB", "80MiB").replace("[model]", "[model]\nmax_length = 128");
    let mut attempt = Attempt::new(&text, &files);
    attempt.context.spec.assignment.memory = Bytes(80 << 20);
    attempt.run().unwrap();
}

#[test]
fn data_is_refused_before_a_model_is_looked_for() {
    let data = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        data.path(),
        "{\"sentence1\": \"a\", \"sentence2\": \"b\", \"score\": 1}\n{\"sentence1\": \"a\"}",
    )
    .unwrap();
    let attempt = Attempt::new(STS, &[("evaluate.0.data/test.jsonl", data.path())]);
    let error = attempt.run().unwrap_err();
    assert!(matches!(error, WorkloadError::Data(_)), "{error}");
    assert!(error.to_string().starts_with("test.jsonl line 2: field `sentence2` is missing"), "{error}");
    assert!(!attempt.output("report.json").exists());
}
