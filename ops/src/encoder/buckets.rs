//! Small passes that a device remembers (`motley_backends::Recording`), for servers: a pass of a few texts is filled up
//! to the next size that was recorded, and asked for by one call.
//!
//! ```text
//! tokens   those of the texts, then of one more text that fills up
//! texts    those that came, the one that fills up, then texts without tokens
//! ```

use std::sync::{Mutex, PoisonError, TryLockError};

use motley_backends::Recording;

use super::Encoder;
use super::forward::{DeviceBatch, Pass};
use crate::tape::Value;
use crate::{PackedBatch, Result, TokenizedText};

/// Tokens of a recorded pass; one text more than the sixteenth part of them.
const SIZES: [usize; 6] = [512, 256, 128, 64, 32, 16];

/// Recorded passes, the largest first. All work in the same memory: the lock is held from what goes in until what comes
/// out was read.
pub(super) struct Buckets(Mutex<Vec<Bucket>>);

struct Bucket {
    size: Size,
    batch: DeviceBatch,
    embeddings: Value,
    recording: Recording,
}

/// Of a pass, with what fills it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    tokens: usize,
    texts: usize,
}

impl Size {
    fn of(tokens: usize) -> Self {
        Size { tokens, texts: tokens / 16 + 1 }
    }

    /// Whether the texts fit, with the one that fills up.
    fn holds(self, batch: &PackedBatch) -> bool {
        let fills = usize::from(batch.tokens() < self.tokens);
        batch.tokens() <= self.tokens && batch.texts() + fills <= self.texts
    }

    /// `batch` filled up to this.
    fn fill(self, batch: &mut PackedBatch, position_first: u32) {
        let missing = self.tokens - batch.tokens();
        if missing > 0 {
            batch.token_ids.resize(self.tokens, 0);
            batch.type_ids.resize(self.tokens, 0);
            for position in 0..missing as u32 {
                batch.position_ids.push(position + position_first);
                batch.rows.extend([0, position]);
            }
        }
        batch.cumulative_lengths.resize(self.texts + 1, self.tokens as u32);
    }
}

impl Encoder {
    /// Has the device remember small passes, where that makes them faster: those of [`Encoder::embed`] that fit run so
    /// from here on. The number of sizes; none where the device gains nothing.
    ///
    /// # Errors
    /// No memory, or a device that failed. Passes run as before then.
    pub fn record_passes(&mut self) -> Result<usize> {
        self.buckets = None;
        let mut buckets = Vec::new();
        for tokens in SIZES.into_iter().filter(|tokens| *tokens <= self.max_positions()) {
            match self.record(Size::of(tokens), buckets.first())? {
                Some(bucket) => buckets.push(bucket),
                None => return Ok(0),
            }
        }
        let count = buckets.len();
        self.buckets = (count > 0).then(|| Buckets(Mutex::new(buckets)));
        Ok(count)
    }

    /// In the memory of `first`, if there is one.
    fn record(&self, size: Size, first: Option<&Bucket>) -> Result<Option<Bucket>> {
        let mut packed = PackedBatch::new(&self.config, &[], &[])?;
        size.fill(&mut packed, self.config.position_first as u32);
        // Everything is compiled after a pass, and its algorithms are chosen.
        self.embed_pass(&packed)?;
        self.device.in_pool(|| {
            let batch = DeviceBatch::upload(&self.device, &packed)?;
            let mut computed = None;
            let shared = first.map(|bucket| &bucket.recording);
            let recording = self.device.backend.record(shared, &mut || {
                let mut pass = Pass { encoder: self, batch: &batch, draws: None, tape: None };
                computed = Some(pass.run(false));
            })?;
            let Some((recording, embeddings)) = recording.zip(computed) else { return Ok(None) };
            Ok(Some(Bucket { size, embeddings: embeddings?, batch, recording }))
        })
    }

    /// Embeds texts by a recorded pass; nothing if they fit none, or another thread uses them.
    pub(super) fn replay(&self, buckets: &Buckets, texts: &[TokenizedText]) -> Result<Option<Vec<f32>>> {
        let tokens: usize = texts.iter().map(|text| text.ids.len()).sum();
        if texts.is_empty() || tokens > SIZES[0] {
            return Ok(None);
        }
        let buckets = match buckets.0.try_lock() {
            Ok(buckets) => buckets,
            Err(TryLockError::Poisoned(poisoned)) => PoisonError::into_inner(poisoned),
            Err(TryLockError::WouldBlock) => return Ok(None),
        };
        let texts: Vec<&TokenizedText> = texts.iter().collect();
        let mut packed = PackedBatch::new(&self.config, &texts, &[])?;
        let Some(bucket) = buckets.iter().rev().find(|bucket| bucket.size.holds(&packed)) else {
            return Ok(None);
        };
        bucket.size.fill(&mut packed, self.config.position_first as u32);
        self.device.in_pool(|| {
            bucket.batch.replace(&self.device, &packed)?;
            self.device.backend.replay(&bucket.recording).map_err(crate::Error::from)
        })?;
        let count = texts.len() * self.hidden();
        self.device.download(bucket.embeddings.tensor.bound(), count).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelConfig;

    #[test]
    fn a_pass_is_filled_up_with_one_text_and_empty_ones() {
        let config = r#"{"model_type":"bert","hidden_size":8,"num_hidden_layers":1,"num_attention_heads":2,
            "intermediate_size":16,"vocab_size":30,"max_position_embeddings":512}"#;
        let config = ModelConfig::parse(config).unwrap();
        let pack = |lengths: &[usize]| {
            let text = |length: &usize| TokenizedText { ids: vec![7; *length], type_ids: Vec::new() };
            let texts: Vec<TokenizedText> = lengths.iter().map(text).collect();
            PackedBatch::new(&config, &texts.iter().collect::<Vec<_>>(), &[]).unwrap()
        };
        let size = Size::of(64);
        assert_eq!(size, Size { tokens: 64, texts: 5 });
        for (lengths, holds) in [
            (&[64][..], true),
            (&[60], true),
            (&[65], false),
            (&[16, 16, 16, 15], true),
            // A text too many for one that fills up.
            (&[9, 9, 9, 9, 9], false),
            (&[9, 9, 9, 9, 28], true),
        ] {
            assert_eq!(size.holds(&pack(lengths)), holds, "{lengths:?}");
        }
        let mut batch = pack(&[3, 2]);
        Size { tokens: 8, texts: 4 }.fill(&mut batch, 2);
        assert_eq!(batch.token_ids, [7, 7, 7, 7, 7, 0, 0, 0]);
        assert_eq!(batch.position_ids, [0, 1, 2, 0, 1, 2, 3, 4]);
        assert_eq!(batch.cumulative_lengths, [0, 3, 5, 8, 8]);
        assert_eq!((batch.type_ids.len(), batch.rows.len()), (8, 16));
        let mut full = pack(&[4, 4]);
        Size { tokens: 8, texts: 2 }.fill(&mut full, 0);
        assert_eq!(full.cumulative_lengths, [0, 4, 8]);
    }
}
