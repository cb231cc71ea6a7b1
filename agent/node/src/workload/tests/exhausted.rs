//! Devices that run out of memory in the middle of evaluating, serving and embedding. Training has its own test.

use std::fmt::Debug;
use std::sync::Arc;

use motley_backends::faults::{Fault, Faulty};
use motley_backends::{Backend, DeviceRequest, open};
use motley_scheduler_core::document::Workload;
use motley_scheduler_core::failure::FailureReason;

use super::*;
use crate::devices::DeviceChoice;
use crate::failure::workload_reason;
use crate::serve::answer_on_device;
use crate::workload::embed::{EmbedOptions, Embedding};
use crate::workload::{WorkloadError, evaluate};

fn cpu() -> Arc<dyn Backend> {
    let request = DeviceRequest { backend: "cpu".into(), threads: Some(2), ..DeviceRequest::default() };
    open(&request).unwrap()
}

/// Runs well, then with the last allocation, one in a pass, failing; and with one while loading. Gives the errors.
fn exhausted<T: Debug, E: Debug>(run: impl Fn(Arc<dyn Backend>) -> Result<T, E>) -> [E; 2] {
    let whole = Faulty::new(cpu(), "cuda:0", Fault::OutOfMemory { allocation: u64::MAX });
    run(whole.clone()).unwrap();
    [whole.allocations() - 1, 20].map(|allocation| {
        let device = Faulty::new(cpu(), "cuda:0", Fault::OutOfMemory { allocation });
        let error = run(device.clone()).unwrap_err();
        assert!(device.allocations() > allocation);
        error
    })
}

#[track_caller]
fn assert_explained(text: &str) {
    assert!(text.contains("the plan for the whole job was ") && text.contains("MiB on cuda:0"), "{text}");
    assert!(text.contains("\nhint: take another device"), "{text}");
}

#[track_caller]
fn assert_reasoned(error: &WorkloadError) {
    assert_explained(&error.to_string());
    assert_eq!(workload_reason(error), FailureReason::OomGpu, "{error}");
}

#[test]
fn an_evaluation_fails_with_its_reason_and_figures() {
    let Some(model) = model_folder() else { return };
    let data = tempfile::NamedTempFile::new().unwrap();
    let row = |first: &str| format!("{{\"sentence1\": \"{first}\", \"sentence2\": \"b\", \"score\": 1}}\n");
    std::fs::write(data.path(), row("a") + &row("z")).unwrap();
    let files: [(&str, &Path); 2] = [("model.source", &model), ("evaluate.0.data/test.jsonl", data.path())];
    let errors = exhausted(|device| {
        let attempt = Attempt::new(super::evaluating::STS, &files);
        let Workload::Evaluate(evaluate) = &attempt.context.document.workload else { panic!("evaluates") };
        evaluate::run_on_device(&attempt.context, evaluate, device)
    });
    errors.iter().for_each(assert_reasoned);
}

#[test]
fn a_server_does_not_start_or_answers_with_the_figures() {
    let Some(model) = model_folder() else { return };
    let text = "version = 1\nkind = \"serve\"\nname = \"v\"\n[model]\nsource = \"file:model\"\n";
    let errors = exhausted(|device| {
        let attempt = Attempt::new(text, &[("model.source", &model)]);
        let Workload::Serve(serve) = &attempt.context.document.workload else { panic!("serves") };
        match answer_on_device(&attempt.context, serve, device, "a text") {
            Ok((answer, loss)) => {
                assert!(loss.is_none(), "other texts may fit");
                answer.map_err(|message| (message, None))
            }
            Err(error) => Err((error.to_string(), Some(error))),
        }
    });
    assert!(errors[0].1.is_none() && errors[1].1.is_some(), "{errors:?}");
    for (message, error) in errors {
        assert_explained(&message);
        error.iter().for_each(assert_reasoned);
    }
}

#[test]
fn a_server_whose_device_is_lost_answers_with_it_and_ends() {
    let Some(model) = model_folder() else { return };
    let text = "version = 1\nkind = \"serve\"\nname = \"v\"\n[model]\nsource = \"file:model\"\n";
    let answer = |device: Arc<Faulty>| {
        let attempt = Attempt::new(text, &[("model.source", &model)]);
        let Workload::Serve(serve) = &attempt.context.document.workload else { panic!("serves") };
        answer_on_device(&attempt.context, serve, device, "a text").unwrap()
    };
    let whole = Faulty::new(cpu(), "cuda:0", Fault::Lost { launch: u64::MAX });
    assert!(matches!(answer(whole.clone()), (Ok(_), None)));
    let (told, loss) = answer(Faulty::new(cpu(), "cuda:0", Fault::Lost { launch: whole.launches() - 2 }));
    assert!(told.unwrap_err().contains("the device is lost"));
    assert_eq!(workload_reason(&loss.unwrap()), FailureReason::DeviceFault);
}

#[test]
fn embedding_a_file_fails_with_the_figures() {
    let Some(model) = model_folder() else { return };
    let root = tempfile::tempdir().unwrap();
    let input = root.path().join("texts.txt");
    std::fs::write(&input, "a\nb\n").unwrap();
    let options = EmbedOptions {
        model: super::exporting::model(&model),
        settings: ModelSettings::from_environment(root.path().join("cache")),
        adapter: None,
        quantization: None,
        prompt: None,
        input,
        output: root.path().join("vectors.npy"),
        device: DeviceChoice::default(),
    };
    let errors = exhausted(|device| {
        let open = || Ok(device.clone());
        Embedding::open_with(&options, &open, &mut |_| {})?.run(&StopFlag::new(), &mut |_| {})
    });
    errors.iter().for_each(assert_reasoned);
}
