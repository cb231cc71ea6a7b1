//! How well the model does on the validation rows while it learns.
//!
//! Scored rows: Spearman of cosine against score. Rows that belong together: how often the partner is the nearest
//! among the partners of all validation rows, and the mean reciprocal rank among them.

use motley_backends::Backend;
use motley_ops::metric::spearman;
use motley_ops::{Encoder, TokenizedText};
use serde_json::{Value, json};

use super::data::TrainData;
use crate::text::TextTokenizer;
use crate::workload::WorkloadError;
use crate::workload::rows::RowFile;

/// Rows embedded at once.
pub(in crate::workload) const WINDOW_ROWS: u32 = 1024;

/// Ranks beyond this count as not found.
const RECIPROCAL_RANK_AT: usize = 10;

/// Figures by name.
///
/// # Errors
/// Those of the data, the tokenizer and the device.
pub(super) fn validate(
    data: &TrainData,
    file: &RowFile,
    encoder: &Encoder,
    tokenizer: &TextTokenizer,
    backend: &dyn Backend,
) -> Result<Value, WorkloadError> {
    let (mut anchors, mut partners, mut labels) = (Vec::new(), Vec::new(), Vec::new());
    let numbers: Vec<u32> = (0..file.count()).collect();
    for window in numbers.chunks(WINDOW_ROWS as usize) {
        let rows = data.tokenized(file, window, tokenizer, backend)?.rows;
        labels.extend(rows.iter().filter_map(|row| row.label.map(f64::from)));
        let side =
            |slot: usize| rows.iter().map(|row| row.texts[slot].clone()).collect::<Vec<TokenizedText>>();
        anchors.extend(encoder.embed(&side(0))?);
        partners.extend(encoder.embed(&side(1))?);
    }
    let width = encoder.hidden();
    let cosine = |a: &[f32], b: &[f32]| {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(f64::MIN_POSITIVE)
    };
    let pairs = || anchors.chunks_exact(width).zip(partners.chunks_exact(width));
    if labels.len() == numbers.len() {
        let cosines: Vec<f64> = pairs().map(|(a, b)| cosine(a, b)).collect();
        return Ok(json!({"cosine_spearman": spearman(&cosines, &labels)}));
    }
    let (mut nearest, mut reciprocal) = (0.0, 0.0);
    for (anchor, own) in pairs() {
        let own = cosine(anchor, own);
        let before = partners.chunks_exact(width).filter(|other| cosine(anchor, other) > own).count();
        nearest += f64::from(u8::from(before == 0));
        if before < RECIPROCAL_RANK_AT {
            reciprocal += 1.0 / (before as f64 + 1.0);
        }
    }
    let count = numbers.len() as f64;
    Ok(json!({"recall_at_1": nearest / count, "mrr_at_10": reciprocal / count}))
}
