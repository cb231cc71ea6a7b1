//! `memory = "auto"`: how much device memory a job is leased.
//!
//! The figure is the planner's: the model, run on the backend that only counts, from its config.json, what its weights
//! are stored in, and the data that the document names. They are those of the model's folder, of an earlier fetch on
//! this machine, or built in for well-known ids; nothing is downloaded in order to submit. Where there is no config, the
//! shape of a BERT base stands in, and weights that are not there count as f32: the node plans again with the real model
//! and tokenizer before it starts, and a job whose exact plan is above this figure goes on if the device has the room.

use std::collections::BTreeMap;
use std::path::Path;

use motley_agent_node::NodeSettings;
use motley_agent_node::models::{ModelAtHand, ModelRequest, model_at_hand};
use motley_agent_node::workload::plan_memory;
use motley_scheduler_core::document::{BackendKind, Document, Memory};
use motley_scheduler_core::unit::Bytes;

use crate::failure::Failure;
use crate::folders;

/// Stands in for a model of which nothing is known here.
const ASSUMED_CONFIG: &str = r#"{"model_type": "bert", "hidden_size": 768, "num_hidden_layers": 12,
    "num_attention_heads": 12, "intermediate_size": 3072, "vocab_size": 30522, "max_position_embeddings": 512}"#;

/// One figure for each alternative of `[resources]`. `folder` is the document's.
///
/// # Errors
/// A model that cannot be run.
pub fn resolve(document: &Document, folder: &Path) -> Result<Vec<Bytes>, Failure> {
    let mut planned = BTreeMap::new();
    let mut figures = Vec::with_capacity(document.resources.len());
    for resources in &document.resources {
        figures.push(match resources.memory {
            Memory::Exact(bytes) => bytes,
            // Whichever of its backends is taken.
            Memory::Auto => {
                for backend in &resources.backend {
                    if !planned.contains_key(backend) {
                        planned.insert(*backend, plan(document, folder, *backend)?);
                    }
                }
                let figures = resources.backend.iter().filter_map(|backend| planned.get(backend));
                figures.copied().max().unwrap_or_default()
            }
        });
    }
    Ok(figures)
}

fn plan(document: &Document, folder: &Path, backend: BackendKind) -> Result<Bytes, Failure> {
    let settings = NodeSettings::from_environment(folders::cache()?);
    let request = ModelRequest::from(document.model());
    let model = model_at_hand(&request, &settings.models, folder);
    plan_memory(document, &model.unwrap_or_else(|| ModelAtHand::of_config(ASSUMED_CONFIG)), folder, backend)
        .map_err(|error| Failure::usage(error).while_doing(document.model().source.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(from: &str, to: &str) -> Document {
        let text = include_str!("../../../../examples/finance/train.toml");
        assert!(text.contains(from), "{from}");
        Document::parse(&text.replace(from, to)).unwrap()
    }

    fn examples() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/finance")
    }

    #[test]
    fn the_first_example_fits_a_small_machine_and_is_not_planned_too_small() {
        let figure = resolve(&document("", ""), &examples()).unwrap()[0];
        // The whole process of a real run peaks below 400 MB.
        assert!(figure > Bytes(400 << 20) && figure < Bytes(2 << 30), "{figure}");
        let unknown = document("sentence-transformers/all-MiniLM-L6-v2", "nobody/unknown");
        assert!(resolve(&unknown, &examples()).unwrap()[0] > figure);
        let stated = document("memory = \"auto\"", "memory = \"3GiB\"");
        assert_eq!(resolve(&stated, &examples()).unwrap(), [Bytes(3 << 30)]);
    }

    #[test]
    fn a_config_that_lies_is_told_with_key_value_and_limit() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("model")).unwrap();
        let config = ASSUMED_CONFIG.replace("30522", "1000000000000");
        std::fs::write(folder.path().join("model/config.json"), config).unwrap();
        let lying = document("sentence-transformers/all-MiniLM-L6-v2", "file:model");
        let message = resolve(&lying, folder.path()).unwrap_err().to_string();
        assert!(message.contains("vocab_size is 1000000000000, 1 to 5592405 is needed"), "{message}");
    }
}
