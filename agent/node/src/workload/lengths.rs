//! How long the texts of a job are, and the largest passes that come of it: what the memory plan is made for.
//!
//! Lengths are those of the tokenizer where it is at hand. Where it is not, or the texts are very many, a text counts
//! with its bytes and the special tokens around it: a token stands for at least one byte of text.

use motley_backends::DeviceKind;
use motley_ops::{PassShape, StepShape};
use motley_scheduler_core::document::train::Steps;

use super::order::{Cursor, DataOrder};
use super::rows::RowFile;
use super::tasks::Examples;
use crate::text::DataError;

/// Lengths in tokens of the texts of rows.
#[derive(Debug, Default)]
pub(crate) struct RowLengths {
    /// Row after row.
    lengths: Vec<u32>,
    /// Where each row ends.
    ends: Vec<usize>,
}

/// The most tokens that a text can come to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ByteBound {
    /// Texts are cut to so many tokens.
    pub(crate) longest: usize,
    /// Bytes of the prompts before anchors or queries, and before the other texts.
    pub(crate) prompts: [usize; 2],
}

/// Tokens that every tokenizer of the supported models puts around a text.
const SPECIAL_TOKENS: usize = 2;

/// Up to so many rows taken in all epochs, every batch of a training is looked at, in about a second. Beyond, the
/// longest rows are taken to meet in one batch.
const ROWS_WALKED_MAX: u64 = 20_000_000;

impl ByteBound {
    fn of(self, text: &str, side: usize) -> usize {
        (text.len() + self.prompts[side] + SPECIAL_TOKENS).min(self.longest)
    }
}

impl RowLengths {
    /// # Errors
    /// The file has changed since it was checked.
    pub(crate) fn by_bytes(file: &RowFile, bound: ByteBound) -> Result<RowLengths, DataError> {
        let mut all = RowLengths::default();
        for number in 0..file.count() {
            let row = file.row(number)?;
            all.push(row.texts.iter().enumerate().map(|(slot, text)| bound.of(text, slot.min(1))));
        }
        Ok(all)
    }

    pub(crate) fn push(&mut self, row: impl Iterator<Item = usize>) {
        self.lengths.extend(row.map(|length| u32::try_from(length).unwrap_or(u32::MAX)));
        self.ends.push(self.lengths.len());
    }

    fn row(&self, number: usize) -> impl Iterator<Item = usize> + Clone {
        let start = number.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.lengths[start..self.ends[number]].iter().map(|length| *length as usize)
    }

    /// The largest step of a training on these rows.
    pub(crate) fn step(&self, steps: &Steps, order: DataOrder) -> StepShape {
        let budget = steps.token_budget as usize;
        let rows_a_step = u64::from(steps.batch_size) * u64::from(steps.accumulation_steps);
        if order.total_steps().saturating_mul(rows_a_step) > ROWS_WALKED_MAX {
            return self.longest_batch(steps.batch_size as usize, budget);
        }
        let mut cursor = Cursor::new(order);
        let batches = (0..order.total_steps()).flat_map(|step| cursor.step(step).batches);
        let shape = |batch: Vec<u32>| {
            let lengths: Vec<usize> = batch.iter().flat_map(|&row| self.row(row as usize)).collect();
            StepShape::of(batch.len(), &lengths, budget)
        };
        batches.map(shape).fold(StepShape::default(), StepShape::max)
    }

    /// The longest rows, met in one batch.
    fn longest_batch(&self, batch_size: usize, budget: usize) -> StepShape {
        let largest = |size: &dyn Fn(usize) -> usize| -> usize {
            let mut sizes: Vec<usize> = (0..self.ends.len()).map(size).collect();
            sizes.sort_unstable_by(|a, b| b.cmp(a));
            sizes.iter().take(batch_size).sum()
        };
        let longest = self.lengths.iter().max().map_or(0, |length| *length as usize);
        let batch = Batch {
            rows: batch_size.min(self.ends.len()),
            texts: largest(&|row| self.row(row).count()),
            longest,
            tokens: largest(&|row| self.row(row).sum()),
        };
        batch.step(budget)
    }

    /// The largest pass when anchors, then partners, of every `window` rows are embedded.
    pub(crate) fn pairs(&self, window: usize, kind: DeviceKind) -> PassShape {
        let numbers: Vec<usize> = (0..self.ends.len()).collect();
        let side = |rows: &[usize], slot: usize| {
            let length = |row: &usize| self.row(*row).nth(slot).unwrap_or(0);
            PassShape::of_embedding(kind, rows.iter().map(length).collect::<Vec<_>>().into_iter())
        };
        let both = |rows: &[usize]| side(rows, 0).max(side(rows, 1));
        numbers.chunks(window).map(both).fold(PassShape::default(), PassShape::max)
    }
}

/// A batch of which only the sizes are known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Batch {
    pub(crate) rows: usize,
    pub(crate) texts: usize,
    /// Tokens of the longest text.
    pub(crate) longest: usize,
    /// Tokens of all.
    pub(crate) tokens: usize,
}

impl Batch {
    /// No step on such a batch is larger.
    pub(crate) fn step(self, budget: usize) -> StepShape {
        let tokens = self.tokens.min(budget).max(self.longest);
        let chunk = PassShape { texts: self.texts, tokens };
        StepShape { chunk, rows: self.rows, texts: self.texts, keeps_tape: true }
    }
}

/// The largest pass of measuring a task.
pub(crate) fn of_examples(examples: &Examples, bound: ByteBound, kind: DeviceKind) -> PassShape {
    let of = |texts: &mut dyn Iterator<Item = &String>, side: usize| {
        let (mut count, mut longest, mut tokens) = (0, 0, 0);
        for text in texts {
            let length = bound.of(text, side);
            (count, longest, tokens) = (count + 1, longest.max(length), tokens + length);
        }
        PassShape::bound_of_embedding(kind, count, longest, tokens)
    };
    match examples {
        Examples::Scored { pairs, .. } | Examples::Labelled { pairs, .. } => {
            of(&mut pairs.first.iter(), 0).max(of(&mut pairs.second.iter(), 1))
        }
        Examples::Retrieval(retrieval) => {
            let queries = of(&mut retrieval.queries.iter().map(|(_, text)| text), 0);
            queries.max(of(&mut retrieval.documents.iter().map(|(_, text)| text), 1))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(lengths: &[&[usize]]) -> RowLengths {
        let mut rows = RowLengths::default();
        lengths.iter().for_each(|row| rows.push(row.iter().copied()));
        rows
    }

    fn steps(batch_size: u32, token_budget: u32, epochs: u32) -> Steps {
        Steps {
            epochs,
            max_steps: None,
            batch_size,
            accumulation_steps: 1,
            seed: 1,
            shuffle: false,
            drop_last: false,
            token_budget,
            gradient_checkpointing: None,
            log_every: 1,
        }
    }

    #[test]
    fn batches_are_those_of_the_order_where_they_can_be_walked() {
        let rows = rows(&[&[100, 1], &[1, 1], &[1, 1, 1], &[100, 1]]);
        let step = |epochs| {
            let steps = steps(2, 1000, epochs);
            rows.step(&steps, DataOrder::new(&steps, 4).unwrap())
        };
        let walked = step(1);
        assert_eq!((walked.chunk, walked.texts), (PassShape { texts: 5, tokens: 104 }, 5));
        // Too many to walk: the two long rows meet.
        let bound = step(u32::MAX);
        assert_eq!((bound.chunk.tokens, bound.chunk.texts, bound.rows), (202, 5, 2));
    }

    #[test]
    fn pairs_are_embedded_window_by_window() {
        let rows = rows(&[&[500, 7], &[500, 7], &[500, 7]]);
        assert_eq!(rows.pairs(1024, DeviceKind::Cpu), PassShape { texts: 3, tokens: 1000 });
        assert_eq!(rows.pairs(1, DeviceKind::Cpu), PassShape { texts: 1, tokens: 500 });
    }
}
