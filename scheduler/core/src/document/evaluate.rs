//! `kind = "evaluate"`, and the `[[evaluate]]` tables of train documents.

use super::model::{AdapterReference, Model, Quantization};

/// An evaluate job.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluate {
    pub model: Model,
    /// `quantization = "nf4"` under `[model]`: measure the quantized base. With an adapter its own base decides.
    pub quantization: Option<Quantization>,
    pub adapter: Option<AdapterReference>,
    /// `[[evaluate]]`; never empty.
    pub tasks: Vec<Task>,
    pub bootstrap: Bootstrap,
}

/// One `[[evaluate]]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    pub kind: TaskKind,
    /// Default: the data's file or folder name without ending. Unique in a document.
    pub name: String,
    /// JSONL file (sts, pair_classification) or BEIR-style folder (retrieval), relative to the document.
    pub data: String,
    /// Name of the prompt for first sentences and queries.
    pub query_prompt: Option<String>,
    /// Name of the prompt for second sentences and documents.
    pub document_prompt: Option<String>,
}

/// `task = "sts" | "pair_classification" | "retrieval"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskKind {
    Sts,
    PairClassification,
    Retrieval,
}

/// `[bootstrap]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bootstrap {
    /// Default 1000.
    pub resamples: u32,
    /// Default 42.
    pub seed: u64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Bootstrap { resamples: 1000, seed: 42 }
    }
}

impl TaskKind {
    pub fn name(self) -> &'static str {
        match self {
            TaskKind::Sts => "sts",
            TaskKind::PairClassification => "pair_classification",
            TaskKind::Retrieval => "retrieval",
        }
    }
}
