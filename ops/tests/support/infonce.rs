//! The specification of InfoNCE: plain loops in f64 over rows of embeddings.
//!
//! L = mean_i CE(cos(a_i, c_j)/T over j that count, target i),  c = positives of all rows, then all hard negatives
//!
//! Of the other candidates j do not count: those of other rows if `in_batch` is off; texts equal to the positive and
//! positives of an equal anchor if `duplicates` is on; those whose cosine is above the positive's by more than the
//! margin. Symmetric: the mean of that and of the same from each positive to all anchors.

use motley_kernels::normalize;

#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub temperature: f64,
    pub symmetric: bool,
    pub in_batch: bool,
    pub margin: Option<f64>,
    pub duplicates: bool,
}

/// Texts of a step: how many each row has, and a name for each that equal texts share.
pub struct Rows<'a> {
    pub counts: &'a [usize],
    pub hashes: &'a [u64],
}

struct Direction<'a> {
    queries: &'a [usize],
    candidates: &'a [usize],
    /// Row of each candidate; that of query i is i.
    owners: &'a [usize],
    weight: f64,
}

/// Returns the loss and its gradient.
pub fn evaluate(x: &[f64], width: usize, rows: &Rows<'_>, settings: &Settings) -> (f64, Vec<f64>) {
    let (y, lengths) = normalize::reference::forward(x, width);
    let (mut anchors, mut positives, mut negatives, mut owners) = (vec![], vec![], vec![], vec![]);
    let mut next = 0;
    for (row, count) in rows.counts.iter().enumerate() {
        anchors.push(next);
        positives.push(next + 1);
        negatives.extend(next + 2..next + count);
        owners.extend((2..*count).map(|_| row));
        next += count;
    }
    let n = rows.counts.len();
    let own: Vec<usize> = (0..n).collect();
    let (candidates, owners) = ([positives.clone(), negatives].concat(), [own.clone(), owners].concat());
    let weight = if settings.symmetric { 0.5 } else { 1.0 } / n as f64;
    let mut dy = vec![0.0; y.len()];
    let forth = Direction { queries: &anchors, candidates: &candidates, owners: &owners, weight };
    let mut loss = forth.evaluate((&y, width), rows.hashes, settings, &mut dy);
    if settings.symmetric {
        let back = Direction { queries: &positives, candidates: &anchors, owners: &own, weight };
        loss += back.evaluate((&y, width), rows.hashes, settings, &mut dy);
    }
    (loss, normalize::reference::backward(&dy, &y, &lengths, width))
}

impl Direction<'_> {
    fn evaluate(
        &self,
        (y, width): (&[f64], usize),
        hashes: &[u64],
        settings: &Settings,
        dy: &mut [f64],
    ) -> f64 {
        let vector = |text: usize| &y[text * width..(text + 1) * width];
        let mut loss = 0.0;
        for (i, query) in self.queries.iter().enumerate() {
            let cosine = |j: usize| {
                let candidate = vector(self.candidates[j]);
                vector(*query).iter().zip(candidate).map(|(a, b)| a * b).sum::<f64>()
            };
            let counts = |j: &usize| *j == i || !self.is_masked([i, *j], hashes, settings, cosine);
            let counting: Vec<usize> = (0..self.candidates.len()).filter(counts).collect();
            let total: f64 = counting.iter().map(|j| (cosine(*j) / settings.temperature).exp()).sum();
            loss += self.weight * (total.ln() - cosine(i) / settings.temperature);
            for j in counting {
                let p = (cosine(j) / settings.temperature).exp() / total;
                let dz = self.weight * (p - f64::from(u8::from(j == i))) / settings.temperature;
                for d in 0..width {
                    dy[query * width + d] += dz * vector(self.candidates[j])[d];
                    dy[self.candidates[j] * width + d] += dz * vector(*query)[d];
                }
            }
        }
        loss
    }

    fn is_masked(
        &self,
        [i, j]: [usize; 2],
        hashes: &[u64],
        settings: &Settings,
        cosine: impl Fn(usize) -> f64,
    ) -> bool {
        let foreign = self.owners[j] != i;
        let equal_text = hashes[self.candidates[j]] == hashes[self.candidates[i]];
        let equal_query = j < self.queries.len() && hashes[self.queries[j]] == hashes[self.queries[i]];
        foreign && !settings.in_batch
            || settings.duplicates && (equal_text || equal_query)
            || settings.margin.is_some_and(|margin| cosine(j) > cosine(i) + margin)
    }
}
