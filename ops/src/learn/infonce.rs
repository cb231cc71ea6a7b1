//! InfoNCE: an anchor shall find its positive among all candidates of the step.
//!
//! L = mean_i CE(cos(a_i, c_j)/T over j, target i),  c = positives of all rows, then all hard negatives
//!
//! Candidates that may well be right are left out of the sum: other rows' texts equal to the positive, positives of
//! an equal anchor, and those nearer to the anchor than the positive by a margin. Symmetric: the same from each
//! positive to all anchors, and the mean of both.
//!
//! Source: van den Oord et al. 2018; sentence-transformers' `MultipleNegativesRankingLoss`, ms-swift's `infonce`.

use motley_backends::{Category, Matmul, Operand};
use motley_kernels::{cross_entropy, normalize};

use super::loss::{Input, LossConfig, LossValue};
use crate::Result;
use crate::device::{Device, Tensor};

/// Settings of one evaluation.
struct Settings {
    temperature: f32,
    in_batch: bool,
    margin: Option<f32>,
    duplicates: bool,
}

/// Unit rows, and what is needed for the way back.
struct Unit {
    y: Tensor,
    length: Tensor,
    /// Gradient of `y`, added to.
    dy: Tensor,
}

/// One direction: queries to candidates. The target of query i is candidate i.
struct Direction<'a> {
    queries: &'a Unit,
    candidates: &'a Unit,
    /// Texts of queries and candidates.
    texts: [&'a [usize]; 2],
    /// Row of each candidate.
    owners: &'a [usize],
    /// Weight of a query's loss.
    weight: f32,
}

pub(super) fn evaluate(input: &Input<'_>, config: &LossConfig) -> Result<LossValue> {
    let LossConfig::Infonce {
        temperature,
        symmetric,
        in_batch_negatives,
        false_negative_margin,
        mask_duplicates,
    } = *config
    else {
        unreachable!("the caller matched the kind of loss");
    };
    let settings = Settings {
        temperature,
        in_batch: in_batch_negatives,
        margin: false_negative_margin,
        duplicates: mask_duplicates,
    };
    let count = input.rows.len();
    let anchors: Vec<usize> = input.rows.iter().map(|(first, _)| *first).collect();
    let mut candidates: Vec<usize> = anchors.iter().map(|first| first + 1).collect();
    let mut owners: Vec<usize> = (0..count).collect();
    for (row, (first, texts)) in input.rows.iter().enumerate() {
        candidates.extend(first + 2..first + texts);
        owners.extend((2..*texts).map(|_| row));
    }
    let a = Unit::new(input.device, input.gather(&anchors)?)?;
    let c = Unit::new(input.device, input.gather(&candidates)?)?;
    let directions = if symmetric { 2.0 } else { 1.0 };
    let weight = 1.0 / (directions * count as f32);
    let forth =
        Direction { queries: &a, candidates: &c, texts: [&anchors, &candidates], owners: &owners, weight };
    let mut loss = forth.evaluate(input, &settings)?;
    if symmetric {
        let texts = [&candidates[..count], &anchors[..]];
        let back = Direction { queries: &c, candidates: &a, texts, owners: &owners[..count], weight };
        loss += back.evaluate(input, &settings)?;
    }
    let mut gradient = input.zero_gradient();
    input.scatter(&a.backward(input.device)?, &anchors, &mut gradient)?;
    input.scatter(&c.backward(input.device)?, &candidates, &mut gradient)?;
    Ok(LossValue { loss, gradient, rows: count })
}

impl Unit {
    fn new(device: &Device, x: Tensor) -> Result<Self> {
        let (y, length) = (device.wide(x.rows, x.width)?, device.wide(x.rows, 1)?);
        let args = normalize::Args { rows: x.rows as u32, width: x.width as u32 };
        device.launch(&normalize::FORWARD, &args, &[x.bound(), y.bound(), length.bound()])?;
        let dy = device.wide(x.rows, x.width)?;
        device.fill(dy.bound(), dy.count(), 0.0)?;
        Ok(Unit { y, length, dy })
    }

    fn backward(&self, device: &Device) -> Result<Tensor> {
        let dx = device.wide(self.y.rows, self.y.width)?;
        let args = normalize::Args { rows: dx.rows as u32, width: dx.width as u32 };
        let bindings = [self.dy.bound(), self.y.bound(), self.length.bound(), dx.bound()];
        device.launch(&normalize::BACKWARD, &args, &bindings)?;
        Ok(dx)
    }
}

impl Direction<'_> {
    /// Adds the gradients to both sides and returns the loss.
    fn evaluate(&self, input: &Input<'_>, settings: &Settings) -> Result<f64> {
        let (device, [queries, candidates]) = (input.device, self.texts);
        let (n, m, width) = (queries.len(), candidates.len(), input.width);
        let inverse = 1.0 / settings.temperature;
        let logits = device.wide(n, m)?;
        device.backend.matmul(&Matmul {
            left: Operand::rows(self.queries.y.bound(), width),
            right: Operand::transposed(self.candidates.y.bound(), width),
            output: Operand::rows(logits.bound(), m),
            shape: [n, m, width],
            batch: 1,
            alpha: inverse,
            beta: 0.0,
        })?;
        let mask = self.mask(input, settings, &logits)?;
        let mask = device.upload_u32(&mask, Category::Activations)?;
        let targets: Vec<u32> = (0..n as u32).collect();
        let targets = device.upload_u32(&targets, Category::Activations)?;
        let losses = device.wide(n, 1)?;
        let args = cross_entropy::Args { rows: n as u32, columns: m as u32, weight: self.weight };
        let bindings = [targets.all(), mask.all(), logits.bound(), losses.bound()];
        device.launch(&cross_entropy::FORWARD_BACKWARD, &args, &bindings)?;
        let add = |left, right, output: &Tensor, shape| {
            let output = Operand::rows(output.bound(), width);
            device.backend.matmul(&Matmul { left, right, output, shape, batch: 1, alpha: inverse, beta: 1.0 })
        };
        let candidate_rows = Operand::rows(self.candidates.y.bound(), width);
        add(Operand::rows(logits.bound(), m), candidate_rows, &self.queries.dy, [n, width, m])?;
        let query_rows = Operand::rows(self.queries.y.bound(), width);
        add(Operand::transposed(logits.bound(), m), query_rows, &self.candidates.dy, [m, width, n])?;
        let losses = device.download(losses.bound(), n)?;
        Ok(losses.iter().map(|loss| f64::from(*loss)).sum())
    }

    /// 1 where a candidate does not count; never at the target.
    fn mask(&self, input: &Input<'_>, settings: &Settings, logits: &Tensor) -> Result<Vec<u32>> {
        let [queries, candidates] = self.texts;
        let hash = |text: usize| input.facts[text].hash;
        let logits = match settings.margin {
            Some(_) => input.device.download(logits.bound(), logits.count())?,
            None => Vec::new(),
        };
        let mut mask = vec![0; queries.len() * candidates.len()];
        for (i, row) in mask.chunks_exact_mut(candidates.len()).enumerate() {
            for (j, masked) in row.iter_mut().enumerate().filter(|(j, _)| *j != i) {
                let owner = self.owners[j];
                let is_partner = j < queries.len();
                let equal = hash(candidates[j]) == hash(candidates[i])
                    || is_partner && hash(queries[owner]) == hash(queries[i]);
                let near = settings.margin.is_some_and(|margin| {
                    let cosine = |j: usize| logits[i * candidates.len() + j] * settings.temperature;
                    cosine(j) > cosine(i) + margin
                });
                let foreign = !settings.in_batch && owner != i;
                *masked = u32::from(settings.duplicates && equal || near || foreign);
            }
        }
        Ok(mask)
    }
}
