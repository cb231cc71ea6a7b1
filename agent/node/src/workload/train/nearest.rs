//! What to change in a training that does not fit: what the user loses least by comes first.
//!
//! ```text
//! layers run again      the same result, a third more time
//! smaller chunks        the same result, one forward pass more
//! a quantized base      another result
//! ```

use motley_ops::ModelConfig;
use motley_scheduler_core::document::train::AdapterKind;
use motley_scheduler_core::document::{Quantization, Train};
use motley_scheduler_core::unit::Bytes;

use super::settings::checkpoint_layers;

/// Smallest value of `train.token_budget`.
const TOKEN_BUDGET_MIN: u32 = 512;

/// The nearest setting that needs at most `allowed`, by what `needs` says of each, with its figure.
pub(super) fn setting_that_fits(
    train: &Train,
    model: &ModelConfig,
    allowed: Bytes,
    needs: &dyn Fn(&Train) -> Option<Bytes>,
) -> String {
    let fits = |train: &Train| needs(train).filter(|needed| *needed <= allowed);
    let mut smaller = train.clone();
    let mut changes: Vec<String> = Vec::new();
    if !checkpoint_layers(train, model) {
        smaller.steps.gradient_checkpointing = Some(true);
        changes.push("train.gradient_checkpointing = true".to_owned());
        if let Some(needed) = fits(&smaller) {
            return format!("set {}, which needs {needed}", changes[0]);
        }
    }
    for quantize in [false, true] {
        if quantize {
            smaller.adapter.kind = AdapterKind::Qlora(Quantization::Nf4 { double_quantization: true });
            changes.push("adapter.kind = \"qlora\"".to_owned());
        }
        let mut budget = train.steps.token_budget;
        while budget > TOKEN_BUDGET_MIN {
            budget = (budget / 2).max(TOKEN_BUDGET_MIN);
            smaller.steps.token_budget = budget;
            if let Some(needed) = fits(&smaller) {
                changes.push(format!("train.token_budget = {budget}"));
                return format!("set {}, which needs {needed}", changes.join(" and "));
            }
        }
        if matches!(train.adapter.kind, AdapterKind::Qlora(_)) {
            break;
        }
    }
    "lower model.max_length, or take a smaller model: no smaller batch or quantized base is small enough"
        .to_owned()
}

#[cfg(test)]
mod tests {
    use motley_scheduler_core::document::{Document, Workload};

    use super::*;

    fn train() -> Train {
        let text = "version = 1\nkind = \"train\"\nname = \"x\"\n[model]\nsource = \"file:model\"\n[adapter]\n\
                    kind = \"lora\"\n[data]\ntrain = \"train.jsonl\"\n[loss]\nkind = \"cosent\"\n";
        let Workload::Train(train) = Document::parse(text).unwrap().workload else {
            panic!("a train document")
        };
        *train
    }

    /// 2 KiB a token of a chunk, half of it if layers run again; the base 100 MiB, a quarter of it quantized.
    fn needs(train: &Train) -> Option<Bytes> {
        let again = train.steps.gradient_checkpointing == Some(true);
        let chunk = u64::from(train.steps.token_budget) * if again { 1024 } else { 2048 };
        let base = if matches!(train.adapter.kind, AdapterKind::Qlora(_)) { 25 << 20 } else { 100 << 20 };
        Some(Bytes(base + chunk))
    }

    #[test]
    fn the_least_loss_comes_first_and_figures_are_told() {
        let config = motley_ops::shapes::shape("minilm").unwrap();
        let model = ModelConfig::parse(config).unwrap();
        let advice = |mebibytes: u64| setting_that_fits(&train(), &model, Bytes(mebibytes << 20), &needs);
        assert_eq!(advice(120), "set train.gradient_checkpointing = true, which needs 116MiB");
        assert_eq!(
            advice(105),
            "set train.gradient_checkpointing = true and train.token_budget = 4096, which needs 104MiB"
        );
        assert_eq!(
            advice(40),
            "set train.gradient_checkpointing = true and adapter.kind = \"qlora\" and train.token_budget = 8192, \
             which needs 33MiB"
        );
        assert!(advice(20).starts_with("lower model.max_length"));
    }
}
