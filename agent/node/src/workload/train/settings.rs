//! The document's words as the trainer's settings.

use motley_ops::{
    Adapter, BaseIdentity, Encoder, LoraConfig, LossConfig, ModelConfig, OptimizerConfig, Schedule,
    ScheduleKind, Trainer, TrainerConfig,
};
use motley_scheduler_core::document::Train;
use motley_scheduler_core::document::model::Quantization;
use motley_scheduler_core::document::train::{self, AdapterKind, Loss, Targets, Warmup};

use super::Work;
use crate::workload::WorkloadError;

/// Refuses losses that would be 0 whatever the texts are; rows without negatives are found where they are read.
///
/// # Errors
/// Such a loss, with the keys.
pub(super) fn check(train: &Train) -> Result<(), WorkloadError> {
    let (what, hint) = match train.loss {
        Loss::Cosent { .. } if train.steps.batch_size == 1 => (
            "loss.kind = \"cosent\" compares the rows of a batch, train.batch_size = 1 leaves nothing to compare",
            "raise train.batch_size; accumulation_steps adds no rows to compare",
        ),
        Loss::Infonce { symmetric: true, in_batch_negatives: false, .. } => (
            "loss.symmetric = true asks which anchor of the batch a text belongs to, \
             loss.in_batch_negatives = false leaves only one",
            "take loss.symmetric out, or set loss.in_batch_negatives = true",
        ),
        Loss::Infonce { symmetric: true, .. } if train.steps.batch_size == 1 => (
            "loss.symmetric = true asks which anchor of the batch a text belongs to, \
             train.batch_size = 1 leaves only one",
            "take loss.symmetric out, or raise train.batch_size",
        ),
        _ => return Ok(()),
    };
    Err(WorkloadError::Unusable { what: what.to_owned(), hint })
}

/// How the base is kept while training.
pub(crate) fn quantization(adapter: &train::Adapter) -> Option<Quantization> {
    match adapter.kind {
        AdapterKind::Qlora(quantization) => Some(quantization),
        AdapterKind::Lora => None,
    }
}

pub(crate) fn lora_config(adapter: &train::Adapter) -> LoraConfig {
    LoraConfig {
        rank: adapter.rank as usize,
        alpha: adapter.alpha,
        dropout: adapter.dropout,
        rank_stabilized: adapter.rslora,
        targets: match &adapter.targets {
            Targets::AllLinear => motley_ops::Targets::AllLinear,
            Targets::Modules(names) => motley_ops::Targets::Names(names.clone()),
        },
    }
}

/// A trainer at step 0.
///
/// # Errors
/// Targets that match nothing, values out of range, no memory.
pub(super) fn trainer(encoder: Encoder, train: &Train, total_steps: u64) -> Result<Trainer, WorkloadError> {
    let adapter = Adapter::new(&encoder, &lora_config(&train.adapter), train.steps.seed)?;
    let checkpoint_layers = checkpoint_layers(train, encoder.config());
    let config = TrainerConfig {
        loss: loss(&train.loss),
        optimizer: OptimizerConfig {
            learning_rate: train.optimizer.learning_rate,
            beta1: train.optimizer.beta1,
            beta2: train.optimizer.beta2,
            epsilon: train.optimizer.epsilon,
            weight_decay: train.optimizer.weight_decay,
        },
        schedule: schedule(&train.schedule, total_steps),
        total_steps,
        max_gradient_norm: (train.optimizer.max_gradient_norm > 0.0)
            .then_some(train.optimizer.max_gradient_norm),
        seed: train.steps.seed,
        token_budget_per_chunk: train.steps.token_budget as usize,
        checkpoint_layers,
    };
    Ok(Trainer::new(encoder, adapter, config)?)
}

/// Decoders have many layers of many values each: what they compute is not kept unless asked for.
pub(crate) fn checkpoint_layers(train: &Train, model: &ModelConfig) -> bool {
    train.steps.gradient_checkpointing.unwrap_or(model.decoder.is_some())
}

pub(crate) fn loss(loss: &Loss) -> LossConfig {
    match *loss {
        Loss::Cosent { scale } => LossConfig::Cosent { scale },
        Loss::CosineSimilarity => LossConfig::CosineSimilarity,
        Loss::Infonce { temperature, symmetric, in_batch_negatives, false_negative_margin } => {
            LossConfig::Infonce {
                temperature,
                symmetric,
                in_batch_negatives,
                false_negative_margin,
                // A text that equals the positive is no negative, whatever the document says.
                mask_duplicates: true,
            }
        }
    }
}

fn schedule(schedule: &train::Schedule, total_steps: u64) -> Schedule {
    let kind = match schedule.kind {
        train::ScheduleKind::Linear => ScheduleKind::Linear,
        train::ScheduleKind::Cosine => ScheduleKind::Cosine,
        train::ScheduleKind::Constant => ScheduleKind::Constant,
    };
    match schedule.warmup {
        Warmup::Ratio(ratio) => Schedule::with_warmup_ratio(kind, ratio, total_steps),
        Warmup::Steps(steps) => Schedule { kind, warmup_steps: steps },
    }
}

/// adapter_config.json and adapter_model.safetensors.
///
/// # Errors
/// The device failed.
pub(super) fn adapter_files(trainer: &Trainer, work: &Work<'_>) -> Result<(String, Vec<u8>), WorkloadError> {
    let identity =
        BaseIdentity { name_or_path: work.open.peft_name(), revision: work.train.model.revision.clone() };
    let adapter = trainer.adapter();
    Ok((adapter.to_peft_config(&identity), adapter.to_peft_safetensors()?))
}

#[cfg(test)]
mod tests {
    use motley_scheduler_core::document::{Document, Workload};

    use super::*;

    fn parse(loss: &str, rest: &str) -> Train {
        let text = format!(
            "version = 1\nkind = \"train\"\nname = \"x\"\n[model]\nsource = \"file:model\"\n[adapter]\nkind = \"lora\"\n\
             [data]\ntrain = \"train.jsonl\"\n[loss]\n{loss}\n{rest}"
        );
        let Workload::Train(train) = Document::parse(&text).unwrap().workload else {
            panic!("a train document")
        };
        *train
    }

    #[test]
    fn losses_that_could_only_be_zero_are_refused_by_key() {
        let one = "[train]\nbatch_size = 1\n";
        for (loss, rest, key) in [
            ("kind = \"cosent\"", one, "train.batch_size = 1"),
            ("kind = \"infonce\"\nsymmetric = true", one, "train.batch_size = 1"),
            (
                "kind = \"infonce\"\nsymmetric = true\nin_batch_negatives = false",
                "",
                "loss.in_batch_negatives = false",
            ),
        ] {
            let message = check(&parse(loss, rest)).unwrap_err().to_string();
            assert!(message.contains(key) && message.contains("\nhint: "), "{message}");
        }
        for (loss, rest) in [
            ("kind = \"cosent\"", ""),
            ("kind = \"cosine_similarity\"", one),
            ("kind = \"infonce\"\nsymmetric = true", ""),
            ("kind = \"infonce\"\nin_batch_negatives = false", one),
        ] {
            check(&parse(loss, rest)).unwrap();
        }
    }

    #[test]
    fn layers_of_decoders_run_again_unless_the_document_says_otherwise() {
        let sizes = r#""hidden_size":8,"num_hidden_layers":1,"num_attention_heads":2,"num_key_value_heads":1,
            "intermediate_size":16,"vocab_size":30}"#;
        let model = |kind: &str| ModelConfig::parse(&format!("{{\"model_type\":\"{kind}\",{sizes}")).unwrap();
        let [bert, decoder] = [model("bert"), model("mistral")];
        for (rest, wanted) in [
            ("", [false, true]),
            ("[train]\ngradient_checkpointing = true", [true, true]),
            ("[train]\ngradient_checkpointing = false", [false, false]),
        ] {
            let train = parse("kind = \"cosent\"", rest);
            let got = [&bert, &decoder].map(|model| checkpoint_layers(&train, model));
            assert_eq!(got, wanted, "{rest}");
        }
    }

    #[test]
    fn a_warmup_in_steps_is_taken_as_it_is() {
        let train = parse("kind = \"cosent\"", "[schedule]\nwarmup = \"100 steps\"\n");
        assert_eq!(schedule(&train.schedule, 50).warmup_steps, 100);
    }
}
