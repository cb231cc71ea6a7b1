//! Texts side by side without padding: `[tokens, …]` and the places where each text starts.

use std::ops::Range;

use crate::model::ModelConfig;
use crate::{Error, Result};

/// A text as the tokenizer gives it, special tokens included, cut to the longest text allowed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct TokenizedText {
    pub ids: Vec<u32>,
    /// Empty means 0 everywhere.
    pub type_ids: Vec<u32>,
}

/// The name of a text in training: what dropout depends on, wherever the text is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct RowIdentity {
    /// The row's number in the data.
    pub sample: u32,
    /// Which text of the row: 0 anchor, 1 positive or second, then negatives.
    pub slot: u8,
}

/// Texts packed on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedBatch {
    /// u32 [tokens] each.
    pub token_ids: Vec<u32>,
    pub type_ids: Vec<u32>,
    pub position_ids: Vec<u32>,
    /// Sample id, then slot·2²⁴ + token index: u32 [tokens, 2].
    pub rows: Vec<u32>,
    /// u32 [texts + 1], from 0 to the number of tokens.
    pub cumulative_lengths: Vec<u32>,
}

/// Token indices are 24 bits of a key, and so are positions.
const POSITIONS_MAX: usize = 1 << 24;

impl PackedBatch {
    /// Packs texts for a model. `identity` is one for each text, or empty where nothing is drawn.
    ///
    /// # Errors
    /// A text without tokens or with more than the model takes; an id the model does not know.
    pub fn new(config: &ModelConfig, texts: &[&TokenizedText], identity: &[RowIdentity]) -> Result<Self> {
        assert!(identity.is_empty() || identity.len() == texts.len(), "one identity for each text");
        let tokens: usize = texts.iter().map(|text| text.ids.len()).sum();
        let mut batch = PackedBatch {
            token_ids: Vec::with_capacity(tokens),
            type_ids: Vec::with_capacity(tokens),
            position_ids: Vec::with_capacity(tokens),
            rows: Vec::with_capacity(2 * tokens),
            cumulative_lengths: Vec::with_capacity(texts.len() + 1),
        };
        batch.cumulative_lengths.push(0);
        for (index, text) in texts.iter().enumerate() {
            check(config, index, text)?;
            let name = identity.get(index).copied().unwrap_or_default();
            batch.token_ids.extend(&text.ids);
            batch.type_ids.extend(&text.type_ids);
            batch.type_ids.resize(batch.token_ids.len(), 0);
            for position in 0..text.ids.len() as u32 {
                batch.position_ids.push(position + config.position_first as u32);
                batch.rows.extend([name.sample, u32::from(name.slot) << 24 | position]);
            }
            batch.cumulative_lengths.push(batch.token_ids.len() as u32);
        }
        Ok(batch)
    }

    pub fn tokens(&self) -> usize {
        self.token_ids.len()
    }

    /// Tokens of the longest text.
    pub fn longest(&self) -> usize {
        let lengths = self.cumulative_lengths.windows(2).map(|pair| pair[1] - pair[0]);
        lengths.max().unwrap_or(0) as usize
    }

    pub fn texts(&self) -> usize {
        self.cumulative_lengths.len() - 1
    }
}

fn check(config: &ModelConfig, index: usize, text: &TokenizedText) -> Result<()> {
    let (tokens, most) = (text.ids.len(), config.max_positions().min(POSITIONS_MAX));
    if tokens == 0 || tokens > most {
        return Err(Error::TextLength { index, tokens, most });
    }
    let out_of_range = |id: u32, rows: usize| Error::TokenOutOfRange { index, id, vocabulary: rows };
    if let Some(&id) = text.ids.iter().find(|id| **id as usize >= config.vocabulary) {
        return Err(out_of_range(id, config.vocabulary));
    }
    if let Some(&id) = text.type_ids.iter().find(|id| **id as usize >= config.token_types) {
        return Err(out_of_range(id, config.token_types));
    }
    if !text.type_ids.is_empty() && text.type_ids.len() != tokens {
        return Err(Error::TextLength { index, tokens: text.type_ids.len(), most: tokens });
    }
    Ok(())
}

/// Cuts texts of these lengths into runs of at most `budget` tokens; a longer text is a run of its own.
pub fn split_by_budget(lengths: impl Iterator<Item = usize>, budget: usize) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut filled = 0;
    for (index, length) in lengths.enumerate() {
        match runs.last_mut() {
            Some(run) if filled + length <= budget => {
                run.end = index + 1;
                filled += length;
            }
            _ => {
                runs.push(index..index + 1);
                filled = length;
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ModelConfig {
        let text = r#"{"model_type":"bert","hidden_size":8,"num_hidden_layers":1,"num_attention_heads":2,
            "intermediate_size":16,"vocab_size":30,"max_position_embeddings":4}"#;
        ModelConfig::parse(text).unwrap()
    }

    fn text(ids: &[u32]) -> TokenizedText {
        TokenizedText { ids: ids.to_vec(), type_ids: Vec::new() }
    }

    #[test]
    fn texts_lie_side_by_side_with_their_names() {
        let (a, b) = (text(&[1, 2]), TokenizedText { ids: vec![3], type_ids: vec![1] });
        let names = [RowIdentity { sample: 7, slot: 0 }, RowIdentity { sample: 7, slot: 1 }];
        let batch = PackedBatch::new(&config(), &[&a, &b], &names).unwrap();
        assert_eq!(batch.token_ids, [1, 2, 3]);
        assert_eq!(batch.type_ids, [0, 0, 1]);
        assert_eq!(batch.position_ids, [0, 1, 0]);
        assert_eq!(batch.rows, [7, 0, 7, 1, 7, 1 << 24]);
        assert_eq!(batch.cumulative_lengths, [0, 2, 3]);
        assert_eq!((batch.tokens(), batch.texts()), (3, 2));
    }

    #[test]
    fn texts_the_model_cannot_take_are_named() {
        for bad in [text(&[]), text(&[1; 5]), text(&[30]), TokenizedText { ids: vec![1], type_ids: vec![2] }]
        {
            let error = PackedBatch::new(&config(), &[&text(&[1]), &bad], &[]).unwrap_err().to_string();
            assert!(error.contains("text 1"), "{error}");
        }
    }

    #[test]
    fn runs_keep_to_the_budget() {
        let split = |lengths: &[usize], budget| split_by_budget(lengths.iter().copied(), budget);
        assert_eq!(split(&[3, 3, 3, 9, 1, 1], 6), [0..2, 2..3, 3..4, 4..6]);
        assert_eq!(split(&[], 6), []);
        assert_eq!(split(&[2, 2], 100), std::slice::from_ref(&(0..2)));
    }
}
