//! The loss of a step, over all its embeddings, wherever they were computed.
//!
//! Every node evaluates the whole loss on the gathered embeddings and keeps the gradient of its own rows: that is
//! exact for every loss, for CoSENT too, whose pairs of pairs do not split over nodes.
//!
//! ```text
//! cosent              log(1 + Σ_{y_i < y_j} exp(scale·(c_i − c_j))), c the cosine of a row's first two texts
//! cosine_similarity   mean (c − y)²
//! infonce             see `infonce`
//! ```
//!
//! Sources: sentence-transformers' `CoSENTLoss`, `CosineSimilarityLoss`.

use motley_backends::Category;
use motley_kernels::{cosent, cosine_pairs, squared_error};

use super::infonce;
use crate::device::{Device, Tensor};
use crate::{Error, Result, RowIdentity};

/// Which loss, with its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LossConfig {
    /// Rows of two texts and a label; only the order of labels counts.
    Cosent { scale: f32 },
    /// Rows of two texts and a label that is a cosine.
    CosineSimilarity,
    /// Rows of two texts that belong together, and hard negatives after them.
    Infonce {
        /// Cosines are divided by it.
        temperature: f32,
        /// Also asks each positive for its anchor; the loss is the mean of both directions.
        symmetric: bool,
        /// Other rows' positives and negatives count as negatives.
        in_batch_negatives: bool,
        /// Leaves out negatives whose cosine is above the positive's by more than this.
        false_negative_margin: Option<f32>,
        /// Leaves out negatives that are the same text as the positive, and positives of the same anchor.
        mask_duplicates: bool,
    },
}

/// What the loss knows of a text besides its embedding; travels with it between nodes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TextFact {
    pub identity: RowIdentity,
    /// The row's label, on each of its texts.
    pub label: Option<f32>,
    /// Of the token ids: equal texts have equal hashes.
    pub hash: u64,
}

/// A loss and its gradient with respect to every embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct LossValue {
    pub loss: f64,
    /// As the embeddings: f32 [texts, hidden].
    pub gradient: Vec<f32>,
    /// Rows that the loss is the loss of.
    pub rows: usize,
}

impl LossConfig {
    pub(crate) fn check(&self) -> Result<()> {
        let (setting, found) = match *self {
            LossConfig::Cosent { scale } => ("loss scale", scale),
            LossConfig::Infonce { temperature, .. } => ("loss temperature", temperature),
            LossConfig::CosineSimilarity => return Ok(()),
        };
        if found.is_finite() && found > 0.0 {
            return Ok(());
        }
        Err(Error::Setting { setting, found: f64::from(found), expected: "a positive number" })
    }

    /// Evaluates the loss. A row's texts stand together, slot 0 first.
    ///
    /// # Errors
    /// Rows that lack what the loss needs; a device that failed.
    pub(crate) fn evaluate(
        &self,
        device: &Device,
        (embeddings, width): (&[f32], usize),
        facts: &[TextFact],
    ) -> Result<LossValue> {
        if embeddings.len() != facts.len() * width {
            return Err(Error::EmbeddingCount {
                given: embeddings.len() / width.max(1),
                expected: facts.len(),
            });
        }
        let input = Input { device, embeddings, width, facts, rows: group(facts)? };
        match *self {
            LossConfig::Cosent { scale } => {
                input.scored(|cosine, labels| cosent(device, cosine, labels, scale))
            }
            LossConfig::CosineSimilarity => {
                input.scored(|cosine, labels| mean_square(device, cosine, labels))
            }
            LossConfig::Infonce { .. } => infonce::evaluate(&input, self),
        }
    }
}

/// What a loss is evaluated on.
pub(super) struct Input<'a> {
    pub(super) device: &'a Device,
    embeddings: &'a [f32],
    pub(super) width: usize,
    pub(super) facts: &'a [TextFact],
    /// Index of each row's first text, and the number of its texts.
    pub(super) rows: Vec<(usize, usize)>,
}

/// Rows of consecutive texts; each has at least two.
fn group(facts: &[TextFact]) -> Result<Vec<(usize, usize)>> {
    let mut rows: Vec<(usize, usize)> = Vec::new();
    for (index, fact) in facts.iter().enumerate() {
        let follows = rows.last().is_some_and(|(first, count)| {
            let row: &TextFact = &facts[*first];
            fact.identity.slot != 0 && row.identity.sample == fact.identity.sample && first + count == index
        });
        match rows.last_mut() {
            Some((_, count)) if follows => *count += 1,
            _ => rows.push((index, 1)),
        }
    }
    if rows.is_empty() {
        return Err(Error::NoRows);
    }
    match rows.iter().find(|(_, count)| *count < 2) {
        None => Ok(rows),
        Some((first, _)) => {
            let sample = facts[*first].identity.sample;
            Err(Error::Row { sample, found: "one text".to_owned(), expected: "two texts" })
        }
    }
}

impl Input<'_> {
    /// The embeddings of these texts, on the device.
    pub(super) fn gather(&self, texts: &[usize]) -> Result<Tensor> {
        let mut values = Vec::with_capacity(texts.len() * self.width);
        for text in texts {
            values.extend_from_slice(&self.embeddings[text * self.width..][..self.width]);
        }
        self.device.upload_tensor(&values, self.width, Category::Activations)
    }

    /// Adds the rows of `gradient` to the places of these texts in `total`.
    pub(super) fn scatter(&self, gradient: &Tensor, texts: &[usize], total: &mut [f32]) -> Result<()> {
        let values = self.device.download(gradient.bound(), gradient.count())?;
        for (row, text) in values.chunks_exact(self.width).zip(texts) {
            let target = &mut total[text * self.width..][..self.width];
            target.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        Ok(())
    }

    pub(super) fn zero_gradient(&self) -> Vec<f32> {
        vec![0.0; self.embeddings.len()]
    }

    /// A loss of cosines and labels; `rule` gives its value and the gradient of the cosines.
    fn scored(&self, rule: impl Fn(&Tensor, &Tensor) -> Result<(f64, Tensor)>) -> Result<LossValue> {
        let device = self.device;
        let mut labels = Vec::with_capacity(self.rows.len());
        for (first, count) in &self.rows {
            let fact = &self.facts[*first];
            let row = |found: String, expected| Error::Row { sample: fact.identity.sample, found, expected };
            if *count != 2 {
                return Err(row(format!("{count} texts"), "two texts"));
            }
            labels.push(fact.label.ok_or_else(|| row("no label".to_owned(), "a label"))?);
        }
        let labels = device.upload_tensor(&labels, 1, Category::Activations)?;
        let firsts: Vec<usize> = self.rows.iter().map(|(first, _)| *first).collect();
        let seconds: Vec<usize> = firsts.iter().map(|first| first + 1).collect();
        let (a, b) = (self.gather(&firsts)?, self.gather(&seconds)?);
        let args = cosine_pairs::Args { rows: a.rows as u32, width: a.width as u32 };
        let cosine = device.wide(a.rows, 1)?;
        device.launch(&cosine_pairs::FORWARD, &args, &[a.bound(), b.bound(), cosine.bound()])?;
        let (loss, dcosine) = rule(&cosine, &labels)?;
        let (da, db) = (device.wide(a.rows, a.width)?, device.wide(a.rows, a.width)?);
        let bindings = [dcosine.bound(), a.bound(), b.bound(), da.bound(), db.bound()];
        device.launch(&cosine_pairs::BACKWARD, &args, &bindings)?;
        let mut gradient = self.zero_gradient();
        self.scatter(&da, &firsts, &mut gradient)?;
        self.scatter(&db, &seconds, &mut gradient)?;
        Ok(LossValue { loss, gradient, rows: self.rows.len() })
    }
}

fn cosent(device: &Device, cosine: &Tensor, labels: &Tensor, scale: f32) -> Result<(f64, Tensor)> {
    let (loss, gradient) = (device.wide(1, 1)?, device.wide(cosine.rows, 1)?);
    let args = cosent::Args { pairs: cosine.rows as u32, scale };
    let bindings = [cosine.bound(), labels.bound(), loss.bound(), gradient.bound()];
    device.launch(&cosent::FORWARD_BACKWARD, &args, &bindings)?;
    Ok((f64::from(device.download(loss.bound(), 1)?[0]), gradient))
}

fn mean_square(device: &Device, cosine: &Tensor, labels: &Tensor) -> Result<(f64, Tensor)> {
    let (loss, gradient) = (device.wide(1, 1)?, device.wide(cosine.rows, 1)?);
    let args = squared_error::Args { count: cosine.rows as u32 };
    let bindings = [cosine.bound(), labels.bound(), loss.bound(), gradient.bound()];
    device.launch(&squared_error::FORWARD_BACKWARD, &args, &bindings)?;
    Ok((f64::from(device.download(loss.bound(), 1)?[0]), gradient))
}
