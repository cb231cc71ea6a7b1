//! The document's words as the trainer's settings.

use motley_ops::{
    Adapter, BaseIdentity, Encoder, LoraConfig, LossConfig, OptimizerConfig, Schedule, ScheduleKind, Trainer,
    TrainerConfig,
};
use motley_scheduler_core::document::Train;
use motley_scheduler_core::document::model::Quantization;
use motley_scheduler_core::document::train::{self, AdapterKind, Loss, Targets, Warmup};

use super::Work;
use crate::workload::WorkloadError;

/// How the base is kept while training.
pub(crate) fn quantization(adapter: &train::Adapter) -> Option<Quantization> {
    match adapter.kind {
        AdapterKind::Qlora(quantization) => Some(quantization),
        AdapterKind::Lora | AdapterKind::Full => None,
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
        checkpoint_layers: false,
    };
    Ok(Trainer::new(encoder, adapter, config)?)
}

fn loss(loss: &Loss) -> LossConfig {
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
