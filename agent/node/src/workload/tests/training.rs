//! Train jobs: what they leave, and that an interruption leaves no trace in it.

use super::*;
use crate::workload::WorkloadError;

/// Dropout, accumulation and more than one epoch, so that each could betray an interruption.
fn document(kind: &str, seed: u64) -> String {
    format!(
        r#"version = 1
kind = "train"
name = "little"
[model]
source = "file:model"
max_length = 64
[adapter]
kind = "{kind}"
rank = 4
dropout = 0.1
[data]
train = "train.jsonl"
[loss]
kind = "cosent"
[optimizer]
learning_rate = 1e-3
[train]
epochs = 2
batch_size = 6
accumulation_steps = 2
seed = {seed}
log_every = 3
[checkpoint]
every = "2 steps"
keep = 20
"#
    )
}

fn attempt(document: &str) -> Option<Attempt> {
    let (model, data) = (model_folder()?, shared("data/stsb/en/train.jsonl")?);
    let rows = head(&data, 50);
    let attempt = Attempt::new(document, &[("model.source", &model)]);
    let place = attempt.root.path().join("input/data.train");
    std::fs::create_dir_all(&place).unwrap();
    std::fs::copy(rows.path(), place.join("train.jsonl")).unwrap();
    Some(attempt)
}

/// A training of a few steps.
pub(super) fn training_attempt(kind: &str) -> Option<Attempt> {
    attempt(&document(kind, 42))
}

fn log(attempt: &Attempt) -> Vec<Value> {
    let mut lines: Vec<Value> = String::from_utf8(attempt.read("log.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for line in &mut lines {
        line["seconds"] = Value::Null;
        line["tokens_per_second"] = Value::Null;
    }
    lines
}

#[test]
fn a_resumed_training_leaves_the_same_bits_as_one_in_one_go() {
    for kind in ["lora", "qlora"] {
        let Some(whole) = attempt(&document(kind, 42)) else { return };
        whole.run().unwrap();
        let adapter = whole.read("adapter/adapter_model.safetensors");
        let rows: Vec<Value> = log(&whole).iter().map(|line| line["rows"].clone()).collect();
        assert_eq!(rows.first().unwrap()[0], 0);
        assert!(rows.windows(2).all(|pair| pair[0][1] == pair[1][0]), "{rows:?}");
        assert_eq!(rows.last().unwrap()[1], 100, "two epochs of 50 rows");
        for step in [2, 4, 8] {
            let mut second = attempt(&document(kind, 42)).unwrap();
            second.resume_from(&whole.context.folders.checkpoints.join(format!("step-{step}")));
            second.run().unwrap();
            assert!(second.read("adapter/adapter_model.safetensors") == adapter, "{kind} resumed at {step}");
            assert_eq!(log(&second), log(&whole), "{kind} resumed at {step}");
            assert_eq!(second.report()["training"]["resumed_at"], serde_json::json!([step]));
        }
        let other = attempt(&document(kind, 43)).unwrap();
        other.run().unwrap();
        assert!(other.read("adapter/adapter_model.safetensors") != adapter, "another seed must differ");
    }
}

#[test]
fn what_a_training_leaves_is_complete() {
    let text = document("qlora", 42).replace("[loss]", "validation = \"validation.jsonl\"\n[loss]");
    let Some(attempt) = attempt(&text) else { return };
    let place = attempt.root.path().join("input/data.validation");
    std::fs::create_dir_all(&place).unwrap();
    let rows = head(&attempt.root.path().join("input/data.train/train.jsonl"), 20);
    std::fs::copy(rows.path(), place.join("validation.jsonl")).unwrap();
    attempt.run().unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors", "motley.json", "README.md"] {
        assert!(!attempt.read(&format!("adapter/{file}")).is_empty(), "{file}");
    }
    let report = attempt.report();
    assert_eq!((&report["kind"], &report["training"]["steps"]), (&"train".into(), &10.into()));
    assert_eq!(report["adapter"]["base_quantization"]["kind"], "nf4");
    assert!(report["memory"]["device_total_peak_bytes"].as_u64().unwrap() > 0);
    let planned = report["memory"]["planned_bytes"].as_u64().unwrap();
    let peak = report["memory"]["device_total_peak_bytes"].as_u64().unwrap();
    assert!(peak <= planned, "peak {peak} of planned {planned}");
    let events = std::fs::read_dir(attempt.output("tensorboard")).unwrap().count();
    assert_eq!(events, 1);
    let config: Value = serde_json::from_slice(&attempt.read("adapter/adapter_config.json")).unwrap();
    assert_eq!((&config["r"], &config["peft_type"]), (&4.into(), &"LORA".into()));
    let data: Vec<_> = report["data"].as_array().unwrap().iter().map(|file| &file["rows"]).collect();
    assert_eq!(data, [50, 20], "training and validation rows");
    assert!(report["data"][0]["sha256"] != report["data"][1]["sha256"]);
    assert!(report["timings"]["load_seconds"].as_f64().unwrap() > 0.0);
    assert!(
        !attempt.output("adapter/modules.json").exists(),
        "sentence-transformers would take another base"
    );
}

#[test]
fn a_lora_adapter_is_a_folder_for_sentence_transformers() {
    let Some(attempt) = attempt(&document("lora", 42)) else { return };
    attempt.run().unwrap();
    let json = |path: &str| serde_json::from_slice::<Value>(&attempt.read(path)).unwrap();
    assert_eq!(json("adapter/modules.json")[1]["path"], "1_Pooling");
    assert_eq!(json("adapter/1_Pooling/config.json")["pooling_mode_mean_tokens"], true);
    assert_eq!(json("adapter/sentence_bert_config.json")["max_seq_length"], 64);
    assert_eq!(json("adapter/motley.json")["base"]["max_length"], 64);
    for file in ["config_sentence_transformers.json", "tokenizer.json", "tokenizer_config.json"] {
        assert!(!attempt.read(&format!("adapter/{file}")).is_empty(), "{file}");
    }
}

#[test]
fn a_stopped_training_keeps_its_last_step_and_goes_on_from_there() {
    let Some(whole) = attempt(&document("lora", 42)) else { return };
    whole.run().unwrap();
    let stopped = attempt(&document("lora", 42)).unwrap();
    let checkpoints = stopped.context.folders.checkpoints.clone();
    let (first, stop) = (checkpoints.join("step-2"), stopped.context.stop.clone());
    let result = std::thread::scope(|scope| {
        let running = scope.spawn(|| stopped.run());
        while !first.exists() && !running.is_finished() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        stop.set();
        running.join().unwrap()
    });
    assert!(matches!(result, Err(WorkloadError::Stopped)), "{result:?}");
    assert!(!stopped.output("report.json").exists());
    let step = crate::workload::checkpoint::newest(&checkpoints).unwrap();
    assert!((2..10).contains(&step), "stopped after step {step} of 10");
    let mut rest = attempt(&document("lora", 42)).unwrap();
    rest.resume_from(&checkpoints.join(format!("step-{step}")));
    rest.run().unwrap();
    let adapter = "adapter/adapter_model.safetensors";
    assert!(rest.read(adapter) == whole.read(adapter), "resumed at {step}");
    assert_eq!(log(&rest), log(&whole), "resumed at {step}");
}

#[test]
fn a_checkpoint_of_other_data_is_refused() {
    let Some(whole) = attempt(&document("lora", 42)) else { return };
    whole.run().unwrap();
    let mut other = attempt(&document("lora", 42)).unwrap();
    let data = other.root.path().join("input/data.train/train.jsonl");
    let text = std::fs::read_to_string(&data).unwrap();
    std::fs::write(&data, text.replacen("score", "score ", 0) + "\n\n").unwrap();
    other.resume_from(&whole.context.folders.checkpoints.join("step-2"));
    let message = other.run().unwrap_err().to_string();
    assert!(message.contains("the training data has the SHA-256"), "{message}");
}

#[test]
fn memory_that_does_not_fit_is_refused_with_the_figure() {
    let stated = "name = \"little\"\n[resources]\nmemory = \"50MiB\"";
    let Some(mut attempt) = attempt(&document("lora", 42).replace("name = \"little\"", stated)) else {
        return;
    };
    attempt.context.spec.assignment.memory = Bytes(50 << 20);
    let error = attempt.run().unwrap_err();
    assert!(matches!(error, WorkloadError::Memory { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("on cpu:0, it has 50MiB") && text.contains("hint: ask for more with"), "{error}");
}

#[test]
fn a_plan_above_an_estimate_goes_on_where_the_device_has_the_room() {
    let text = document("lora", 42).replace("epochs = 2", "max_steps = 1");
    let Some(mut attempt) = attempt(&text) else { return };
    attempt.context.spec.assignment.memory = Bytes(50 << 20);
    attempt.run().unwrap();
    assert!(attempt.report()["memory"]["planned_bytes"].as_u64().unwrap() > 50 << 20);
}

#[test]
fn a_config_that_lies_is_refused_before_anything_is_loaded() {
    let Some(model) = model_folder() else { return };
    let config = std::fs::read_to_string(model.join("config.json")).unwrap();
    for (from, to, wanted) in [
        ("\"vocab_size\": 30522", "\"vocab_size\": 1000000000000", "vocab_size is 1000000000000, 1 to"),
        ("_size\": 1536", "_size\": 4611686018427387904", "intermediate_size is 4611686018427387904, 1 to"),
        (
            "\"vocab_size\": 30522",
            "\"vocab_size\": 11000000",
            "word_embeddings.weight has shape [30522, 384]",
        ),
    ] {
        let lying = tempfile::tempdir().unwrap();
        for name in ["tokenizer.json", "model.safetensors"] {
            std::os::unix::fs::symlink(model.join(name), lying.path().join(name)).unwrap();
        }
        assert!(config.contains(from), "{config}");
        std::fs::write(lying.path().join("config.json"), config.replace(from, to)).unwrap();
        let Some(attempt) = attempt(&document("lora", 42)) else { return };
        let place = attempt.root.path().join("input/model.source");
        std::fs::remove_file(&place).unwrap();
        std::os::unix::fs::symlink(lying.path(), &place).unwrap();
        let error = attempt.run().unwrap_err();
        assert!(error.to_string().contains(wanted), "{error}");
        let reason = crate::failure::workload_reason(&error);
        assert_eq!(reason, motley_scheduler_core::failure::FailureReason::UserError, "{error}");
    }
}

#[test]
fn a_device_that_fails_in_a_step_fails_the_job_with_its_reason_and_figures() {
    use crate::failure::workload_reason;
    use motley_backends::faults::{Fault, Faulty};
    use motley_backends::{Backend, DeviceRequest, open};
    use motley_scheduler_core::document::Workload;
    use motley_scheduler_core::failure::FailureReason;

    let cpu = || {
        let request = DeviceRequest { backend: "cpu".into(), threads: Some(2), ..DeviceRequest::default() };
        open(&request).unwrap()
    };
    let run = |fault: Fault| {
        let attempt = attempt(&document("qlora", 42).replace("epochs = 2", "max_steps = 2"))?;
        let Workload::Train(train) = &attempt.context.document.workload else { panic!("a train document") };
        let device = Faulty::new(cpu(), "cuda:0", fault);
        let result = crate::workload::train::run_on_device(&attempt.context, train, device.clone());
        Some((result, device))
    };
    let never = Fault::OutOfMemory { allocation: u64::MAX };
    let Some((result, whole)) = run(never) else { return };
    result.unwrap();
    // In the middle of the second step.
    let (allocation, launch) = (whole.allocations() * 3 / 4, whole.launches() * 3 / 4);
    let (result, device) = run(Fault::OutOfMemory { allocation }).unwrap();
    let error = result.unwrap_err();
    let text = error.to_string();
    assert_eq!(workload_reason(&error), FailureReason::OomGpu, "{text}");
    assert!(text.contains("the plan for the whole job was ") && text.contains("MiB on cuda:0"), "{text}");
    assert_eq!(device.memory().live, 0, "nothing of the job is left");
    let (result, device) = run(Fault::Lost { launch }).unwrap();
    let error = result.unwrap_err();
    assert_eq!(workload_reason(&error), FailureReason::DeviceFault, "{error}");
    assert!(error.to_string().contains("cuda:0 failed at "), "{error}");
    assert_eq!(device.memory().live, 0, "nothing of the job is left");
}
