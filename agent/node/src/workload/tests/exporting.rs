//! Embedding files, exporting, and adapters on bases that are not theirs.

use motley_scheduler_core::document::model::AdapterBase;
use motley_scheduler_core::document::{Model, ModelPrecision, Source};

use super::training::training_attempt;
use super::*;
use crate::devices::DeviceChoice;
use crate::runner::StopFlag;
use crate::workload::{EmbedOptions, EmbedSummary, Embedding, ExportOptions, WorkloadError, export_merged};

pub(super) fn model(folder: &Path) -> Model {
    Model { max_length: Some(256), ..model_as_trained(folder) }
}

/// Without a longest text, so that the adapter's own counts.
pub(super) fn model_as_trained(folder: &Path) -> Model {
    Model {
        source: Source::File { path: folder.display().to_string() },
        fallbacks: Vec::new(),
        revision: None,
        sha256: None,
        max_length: None,
        prompts: Default::default(),
        dropout_from_config: false,
        precision: ModelPrecision::Auto,
    }
}

/// Embeds a file's texts and gives the vectors back.
fn embed(
    folder: &Path,
    adapter: Option<(&Path, AdapterBase)>,
    input: &Path,
) -> Result<Vec<f32>, WorkloadError> {
    embed_with(model(folder), adapter, input)
}

pub(super) fn embed_with(
    model: Model,
    adapter: Option<(&Path, AdapterBase)>,
    input: &Path,
) -> Result<Vec<f32>, WorkloadError> {
    let output = tempfile::tempdir().unwrap();
    let options = EmbedOptions {
        model,
        settings: ModelSettings::from_environment(output.path().join("cache")),
        adapter: adapter.map(|(folder, base)| (folder.to_path_buf(), base)),
        quantization: None,
        prompt: None,
        input: input.to_path_buf(),
        output: output.path().join("vectors.npy"),
        device: DeviceChoice { threads: Some(2), ..DeviceChoice::default() },
    };
    let summary = embed_file(&options)?;
    let bytes = std::fs::read(&options.output).unwrap();
    assert_eq!(bytes.len() as u64, 128 + summary.texts * summary.dimensions as u64 * 4);
    Ok(bytes[128..].chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().unwrap())).collect())
}

fn embed_file(options: &EmbedOptions) -> Result<EmbedSummary, WorkloadError> {
    Embedding::open(options, &mut |_| {})?.run(&StopFlag::new(), &mut |_| {})
}

pub(super) fn largest_difference(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    left.iter().zip(right).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_file_of_texts_has_the_reference_vectors() {
    let (Some(folder), Some(reference)) = (model_folder(), shared("reference/minilm_embeddings.jsonl"))
    else {
        return;
    };
    let got = embed(&folder, None, &reference).unwrap();
    let text = std::fs::read_to_string(&reference).unwrap();
    let mut expected = Vec::new();
    for line in text.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        expected
            .extend(row["embedding"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32));
    }
    let difference = largest_difference(&got, &expected);
    assert!(difference <= 1e-5, "{difference}");
}

#[test]
fn a_merged_folder_reproduces_the_base_of_its_adapter() {
    for kind in ["lora", "qlora"] {
        let Some(attempt) = training_attempt(kind) else { return };
        attempt.run().unwrap();
        let folder = model_folder().unwrap();
        let adapter = attempt.output("adapter");
        let texts = tempfile::Builder::new().suffix(".txt").tempfile().unwrap();
        std::fs::write(texts.path(), "A man plays a harp.\n\nRates were cut by 25 basis points.\n").unwrap();
        let own = embed(&folder, Some((&adapter, AdapterBase::Own)), texts.path()).unwrap();

        let output = attempt.root.path().join("merged");
        let options = ExportOptions {
            model: model(&folder),
            settings: ModelSettings::from_environment(attempt.root.path().join("cache")),
            adapter: Some((adapter.clone(), AdapterBase::Own)),
            output: output.clone(),
            threads: Some(2),
        };
        let summary = export_merged(&options, &mut |_| {}).unwrap();
        assert_eq!(summary.base.contains("dequantized"), kind == "qlora", "{summary:?}");
        let merged = embed(&output, None, texts.path()).unwrap();
        let difference = largest_difference(&own, &merged);
        assert!(difference <= 1e-5, "{kind}: {difference}");
        let base = embed(&folder, None, texts.path()).unwrap();
        assert!(largest_difference(&base, &merged) > 1e-3, "{kind}: training changed nothing");
        assert!(output.join("1_Pooling/config.json").exists() && output.join("tokenizer.json").exists());

        let again = export_merged(&options, &mut |_| {}).unwrap_err();
        assert!(again.to_string().contains("not empty"), "{again}");
        let other_base = embed(&output, Some((&adapter, AdapterBase::Own)), texts.path()).unwrap_err();
        assert!(matches!(other_base, WorkloadError::Adapter(_)), "{other_base}");
        let full = embed(&folder, Some((&adapter, AdapterBase::FullPrecision)), texts.path()).unwrap();
        let difference = largest_difference(&own, &full);
        assert_eq!(difference > 1e-4, kind == "qlora", "{kind}: {difference}");
    }
}

#[test]
fn an_adapter_is_used_with_the_longest_text_of_its_training() {
    let Some(attempt) = training_attempt("lora") else { return };
    attempt.run().unwrap();
    let (folder, adapter) = (model_folder().unwrap(), attempt.output("adapter"));
    let own = Some((adapter.as_path(), AdapterBase::Own));
    let texts = tempfile::Builder::new().suffix(".txt").tempfile().unwrap();
    std::fs::write(texts.path(), "rates were cut by 25 basis points ".repeat(30)).unwrap();
    let with_length = |max_length| {
        let model = Model { max_length, ..model_as_trained(&folder) };
        embed_with(model, own, texts.path()).unwrap()
    };
    let as_trained = with_length(None);
    assert_eq!(as_trained, with_length(Some(64)), "the training's max_length");
    assert_ne!(as_trained, with_length(Some(256)));

    let output = attempt.root.path().join("merged");
    let options = ExportOptions {
        model: model_as_trained(&folder),
        settings: ModelSettings::from_environment(attempt.root.path().join("cache")),
        adapter: Some((adapter.clone(), AdapterBase::Own)),
        output: output.clone(),
        threads: Some(2),
    };
    export_merged(&options, &mut |_| {}).unwrap();
    let text = std::fs::read(output.join("sentence_bert_config.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&text).unwrap()["max_seq_length"], 64);
    let merged = embed_with(model_as_trained(&output), None, texts.path()).unwrap();
    let difference = largest_difference(&as_trained, &merged);
    assert!(difference <= 1e-5, "{difference}");
}

#[test]
fn what_cannot_be_embedded_leaves_no_file() {
    let Some(folder) = model_folder() else { return };
    let root = tempfile::tempdir().unwrap();
    let input = root.path().join("texts.jsonl");
    std::fs::write(&input, "{\"text\": \"a\"}\n{\"text\": 3}\n").unwrap();
    let mut options = EmbedOptions {
        model: model(&folder),
        settings: ModelSettings::from_environment(root.path().join("cache")),
        adapter: None,
        quantization: None,
        prompt: None,
        input: input.clone(),
        output: root.path().join("vectors.npy"),
        device: DeviceChoice { threads: Some(1), ..DeviceChoice::default() },
    };
    let message = embed_file(&options).unwrap_err().to_string();
    assert!(message.contains("texts.jsonl line 2: field `text` is the number 3, not a text"), "{message}");
    options.prompt = Some("query".into());
    assert!(embed_file(&options).unwrap_err().to_string().contains("prompt `query` is not known"));
    options.output = root.path().join("vectors.csv");
    assert!(embed_file(&options).unwrap_err().to_string().contains(".npy nor in .jsonl"));
    let left: Vec<_> =
        std::fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["texts.jsonl"]);
}

/// Token id of the letter `z` in the vocabulary of uncased BERT.
pub(super) const Z: u64 = 1062;

/// A copy of a model's folder in which the word embedding of `token` is NaN.
pub(super) fn with_broken_token(folder: &Path, token: u64) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "modules.json"] {
        std::fs::copy(folder.join(name), copy.path().join(name)).unwrap();
    }
    std::fs::create_dir(copy.path().join("1_Pooling")).unwrap();
    std::fs::copy(folder.join("1_Pooling/config.json"), copy.path().join("1_Pooling/config.json")).unwrap();
    let mut weights = std::fs::read(folder.join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&weights[8..8 + length]).unwrap();
    let table = &header["embeddings.word_embeddings.weight"];
    let (start, width) = (table["data_offsets"][0].as_u64().unwrap(), table["shape"][1].as_u64().unwrap());
    let row = 8 + length + (start + token * width * 4) as usize;
    for value in weights[row..row + width as usize * 4].chunks_exact_mut(4) {
        value.copy_from_slice(&f32::NAN.to_le_bytes());
    }
    std::fs::write(copy.path().join("model.safetensors"), weights).unwrap();
    copy
}

#[test]
fn a_vector_that_is_not_finite_ends_embedding_with_its_line_and_leaves_no_file() {
    let Some(folder) = model_folder() else { return };
    // The last letter of the third line is the only `z` of the file.
    let broken = with_broken_token(&folder, Z);
    let texts = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(texts.path(), "a longer first line\nb\nb z\nc\n").unwrap();
    let error = embed(broken.path(), None, texts.path()).unwrap_err();
    let message = error.to_string();
    assert!(message.contains(" line 3: the vector holds NaN"), "{message}");
    let reason = crate::failure::workload_reason(&error);
    assert_eq!(reason, motley_scheduler_core::failure::FailureReason::Numerics);
    std::fs::write(texts.path(), "a longer first line\nb\nc\n").unwrap();
    assert!(embed(broken.path(), None, texts.path()).unwrap().iter().all(|value| value.is_finite()));
}
