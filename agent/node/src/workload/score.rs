//! From vectors to figures: the metrics of each task, an interval, and every example's own score.
//!
//! Names are MTEB's, so that results stand beside published ones. `main_score` is what MTEB ranks by; the interval
//! and the paired comparison are of [`TaskScores::resampled_metric`], which is computed from the examples' scores.

use std::collections::BTreeMap;

use motley_ops::metric::classification::{BinaryScores, average_precision, binary_scores};
use motley_ops::metric::ranking::{CUTOFFS, mean_scores, query_scores};
use motley_ops::metric::{Interval, QueryScores, Resampling, bootstrap, pearson, spearman};
use serde::{Deserialize, Serialize};

use super::overlap::overlaps;
use super::tasks::{Examples, Pairs, Retrieval};

/// Turns texts into vectors of any length but 0, row by row in one list. The side says which prompt they get.
pub(crate) type Embed<'a, E> = &'a mut dyn FnMut(&[&str], Side) -> Result<Vec<f32>, E>;

/// Which prompt a text gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// First sentences and queries.
    Query,
    /// Second sentences and documents.
    Document,
}

/// The figures of one task.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TaskScores {
    /// By MTEB's names, `main_score` among them; absent where a figure has no value.
    pub(crate) metrics: BTreeMap<String, Option<f64>>,
    pub(crate) main_metric: &'static str,
    pub(crate) resampled_metric: ResampledMetric,
    pub(crate) interval: Option<Interval>,
    /// The resampled metric of word overlap in the place of cosines; absent for retrieval, and without a value.
    pub(crate) word_overlap: Option<f64>,
    pub(crate) examples: Vec<ExampleScore>,
}

/// A figure that can be computed anew from any choice of examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ResampledMetric {
    CosineSpearman,
    CosineAp,
    #[serde(rename = "ndcg_at_10")]
    NdcgAt10,
}

/// One example: its id (a row number, or a query's id), the model's score, and what it should be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ExampleScore {
    pub(crate) id: String,
    /// Cosine of the pair; nDCG@10 of the query.
    pub(crate) score: f64,
    /// Gold score, or label; absent for queries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gold: Option<f64>,
}

/// Documents kept per query: MTEB's deepest cut-off.
const RETRIEVED_MAX: usize = CUTOFFS[CUTOFFS.len() - 1];

impl ResampledMetric {
    /// As in a task's metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            ResampledMetric::CosineSpearman => "cosine_spearman",
            ResampledMetric::CosineAp => "cosine_ap",
            ResampledMetric::NdcgAt10 => "ndcg_at_10",
        }
    }

    /// The figure over the examples at `indices`.
    pub(crate) fn of(self, examples: &[ExampleScore], indices: &[u32]) -> Option<f64> {
        let chosen = || indices.iter().map(|&index| &examples[index as usize]);
        let scores: Vec<f64> = chosen().map(|example| example.score).collect();
        let gold = || chosen().map(|example| example.gold.unwrap_or(0.0));
        match self {
            ResampledMetric::CosineSpearman => spearman(&scores, &gold().collect::<Vec<_>>()),
            ResampledMetric::CosineAp => {
                let labels: Vec<bool> = gold().map(|label| label > 0.5).collect();
                labels.contains(&true).then(|| average_precision(&scores, &labels))
            }
            ResampledMetric::NdcgAt10 => {
                (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / scores.len() as f64)
            }
        }
    }
}

/// Embeds a task's texts and scores them.
///
/// # Errors
/// Only those of `embed`.
pub(crate) fn score_task<E>(
    examples: &Examples,
    resampling: Resampling,
    embed: Embed<'_, E>,
) -> Result<TaskScores, E> {
    let mut scores = match examples {
        Examples::Scored { pairs, gold } => scored_pairs(pairs, gold, embed)?,
        Examples::Labelled { pairs, labels } => labelled_pairs(pairs, labels, embed)?,
        Examples::Retrieval(retrieval) => retrieve(retrieval, embed)?,
    };
    let main = scores.metrics.get(scores.main_metric).copied().flatten();
    scores.metrics.insert("main_score".to_owned(), main);
    let (metric, list) = (scores.resampled_metric, &scores.examples);
    scores.interval = bootstrap::interval(list.len(), resampling, |indices| metric.of(list, indices));
    Ok(scores)
}

/// Similarities of pairs; higher means more alike in each.
///
/// Each is rounded to f32, the precision of the vectors: in f64 the cosines of two pairs of equal texts differ by the
/// rounding of the division (0.9999999999999998, 1.0000000000000002), and would not tie.
struct Similarities {
    cosine: Vec<f64>,
    dot: Vec<f64>,
    manhattan: Vec<f64>,
    euclidean: Vec<f64>,
}

impl Similarities {
    fn of<E>(pairs: &Pairs, embed: Embed<'_, E>) -> Result<Similarities, E> {
        let count = pairs.first.len();
        let first = embed(&borrowed(&pairs.first), Side::Query)?;
        let second = embed(&borrowed(&pairs.second), Side::Document)?;
        let width = first.len() / count.max(1);
        let mut all = Similarities { cosine: vec![], dot: vec![], manhattan: vec![], euclidean: vec![] };
        for (a, b) in first.chunks_exact(width).zip(second.chunks_exact(width)) {
            let wide = || a.iter().zip(b).map(|(a, b)| (f64::from(*a), f64::from(*b)));
            let dot: f64 = wide().map(|(a, b)| a * b).sum();
            all.dot.push(rounded(dot));
            all.cosine.push(rounded(dot / (norm(a) * norm(b)).max(f64::MIN_POSITIVE)));
            all.manhattan.push(rounded(-wide().map(|(a, b)| (a - b).abs()).sum::<f64>()));
            all.euclidean.push(rounded(-wide().map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()));
        }
        Ok(all)
    }

    fn named(&self) -> [(&'static str, &[f64]); 4] {
        [
            ("cosine", &self.cosine),
            ("dot", &self.dot),
            ("manhattan", &self.manhattan),
            ("euclidean", &self.euclidean),
        ]
    }
}

/// To the nearest f32.
fn rounded(value: f64) -> f64 {
    f64::from(value as f32)
}

fn norm(vector: &[f32]) -> f64 {
    vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}

fn borrowed(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

fn scored_pairs<E>(pairs: &Pairs, gold: &[f64], embed: Embed<'_, E>) -> Result<TaskScores, E> {
    let similarities = Similarities::of(pairs, embed)?;
    let mut metrics = BTreeMap::new();
    for (name, values) in similarities.named() {
        if name != "dot" {
            metrics.insert(format!("{name}_pearson"), pearson(values, gold));
            metrics.insert(format!("{name}_spearman"), spearman(values, gold));
        }
    }
    for name in ["pearson", "spearman"] {
        // The model's own similarity is the cosine.
        metrics.insert(name.to_owned(), metrics[&format!("cosine_{name}")]);
    }
    Ok(TaskScores {
        metrics,
        main_metric: "cosine_spearman",
        resampled_metric: ResampledMetric::CosineSpearman,
        interval: None,
        word_overlap: spearman(&overlaps(pairs), gold),
        examples: pair_examples(&similarities.cosine, gold.iter().copied()),
    })
}

fn labelled_pairs<E>(pairs: &Pairs, labels: &[bool], embed: Embed<'_, E>) -> Result<TaskScores, E> {
    let similarities = Similarities::of(pairs, embed)?;
    let mut metrics: BTreeMap<String, Option<f64>> = BTreeMap::new();
    for (name, values) in similarities.named() {
        // Distances are swept as negative similarities; their thresholds are told as distances.
        let sign = if matches!(name, "manhattan" | "euclidean") { -1.0 } else { 1.0 };
        let scores = binary_scores(values, labels);
        for (suffix, value) in named_scores(&scores, sign) {
            metrics.insert(format!("{name}_{suffix}"), Some(value));
            if name == "cosine" {
                metrics.insert(format!("similarity_{suffix}"), Some(value));
            }
            if !suffix.ends_with("threshold") {
                let best = metrics.entry(format!("max_{suffix}")).or_insert(Some(value));
                *best = best.map(|best| best.max(value));
            }
        }
    }
    let gold = labels.iter().map(|label| f64::from(u8::from(*label)));
    Ok(TaskScores {
        metrics,
        main_metric: "max_ap",
        resampled_metric: ResampledMetric::CosineAp,
        interval: None,
        word_overlap: labels.contains(&true).then(|| average_precision(&overlaps(pairs), labels)),
        examples: pair_examples(&similarities.cosine, gold),
    })
}

fn named_scores(scores: &BinaryScores, sign: f64) -> [(&'static str, f64); 7] {
    [
        ("accuracy", scores.accuracy),
        ("accuracy_threshold", sign * scores.accuracy_threshold),
        ("f1", scores.f1),
        ("f1_threshold", sign * scores.f1_threshold),
        ("precision", scores.precision),
        ("recall", scores.recall),
        ("ap", scores.average_precision),
    ]
}

fn pair_examples(cosine: &[f64], gold: impl Iterator<Item = f64>) -> Vec<ExampleScore> {
    let example = |(row, (score, gold)): (usize, (&f64, f64))| ExampleScore {
        id: row.to_string(),
        score: *score,
        gold: Some(gold),
    };
    cosine.iter().zip(gold).enumerate().map(example).collect()
}

fn retrieve<E>(retrieval: &Retrieval, embed: Embed<'_, E>) -> Result<TaskScores, E> {
    let texts = |list: &[(String, String)]| list.iter().map(|(_, text)| text.clone()).collect::<Vec<_>>();
    let mut queries = embed(&borrowed(&texts(&retrieval.queries)), Side::Query)?;
    let mut documents = embed(&borrowed(&texts(&retrieval.documents)), Side::Document)?;
    let width = queries.len() / retrieval.queries.len().max(1);
    // MTEB ranks by cosine; not every model ends in a normalisation.
    normalize_rows(&mut queries, width);
    normalize_rows(&mut documents, width);
    let mut scored = Vec::with_capacity(retrieval.queries.len());
    for (query, judged) in queries.chunks_exact(width).zip(&retrieval.judgements) {
        let similarity: Vec<f32> =
            documents.chunks_exact(width).map(|document| dot(query, document)).collect();
        let found = best(&similarity, &retrieval.documents);
        let relevance =
            |document: &usize| judged.get(&retrieval.documents[*document].0).copied().unwrap_or(0.0);
        let found: Vec<f64> = found.iter().map(relevance).collect();
        scored.push(query_scores(&found, &judged.values().copied().collect::<Vec<_>>()));
    }
    let example = |((id, _), scores): (&(String, String), &QueryScores)| ExampleScore {
        id: id.clone(),
        score: scores.ndcg[NDCG_AT_10],
        gold: None,
    };
    Ok(TaskScores {
        metrics: ranking_metrics(&mean_scores(&scored)),
        main_metric: "ndcg_at_10",
        resampled_metric: ResampledMetric::NdcgAt10,
        interval: None,
        word_overlap: None,
        examples: retrieval.queries.iter().zip(&scored).map(example).collect(),
    })
}

const NDCG_AT_10: usize = 3;
const _: () = assert!(CUTOFFS[NDCG_AT_10] == 10);

fn ranking_metrics(mean: &QueryScores) -> BTreeMap<String, Option<f64>> {
    let mut metrics = BTreeMap::new();
    for (name, values) in [
        ("ndcg", &mean.ndcg),
        ("map", &mean.average_precision),
        ("recall", &mean.recall),
        ("precision", &mean.precision),
        ("mrr", &mean.reciprocal_rank),
    ] {
        for (cutoff, value) in CUTOFFS.iter().zip(values) {
            metrics.insert(format!("{name}_at_{cutoff}"), Some(*value));
        }
    }
    metrics
}

/// Brings each row to length 1; a row of zeros stays.
fn normalize_rows(rows: &mut [f32], width: usize) {
    for row in rows.chunks_exact_mut(width) {
        let norm = norm(row).max(f64::MIN_POSITIVE);
        for value in row {
            *value = (f64::from(*value) / norm) as f32;
        }
    }
}

/// Sixteen sums side by side, added in one order: the same bits on every machine, and fast without more.
fn dot(left: &[f32], right: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0f32; LANES];
    let (left_blocks, right_blocks) = (left.chunks_exact(LANES), right.chunks_exact(LANES));
    let rest: f32 = left_blocks.remainder().iter().zip(right_blocks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in left_blocks.zip(right_blocks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// The documents with the highest similarity, best first; equal ones by falling id, as `trec_eval` orders them.
fn best(similarity: &[f32], documents: &[(String, String)]) -> Vec<usize> {
    let order = |a: &usize, b: &usize| {
        similarity[*b].total_cmp(&similarity[*a]).then_with(|| documents[*b].0.cmp(&documents[*a].0))
    };
    let mut all: Vec<usize> = (0..similarity.len()).collect();
    if all.len() > RETRIEVED_MAX {
        all.select_nth_unstable_by(RETRIEVED_MAX, order);
        all.truncate(RETRIEVED_MAX);
    }
    all.sort_by(order);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    const RESAMPLING: Resampling = Resampling { resamples: 200, seed: 42 };

    /// A stand-in model: texts are angles in degrees, and lengths behind a colon that are 1 where absent.
    fn angles(texts: &[&str], _: Side) -> Result<Vec<f32>, Infallible> {
        let vector = |text: &&str| {
            let (angle, length) = text.split_once(':').unwrap_or((text, "1"));
            let (sine, cosine) = angle.parse::<f64>().unwrap().to_radians().sin_cos();
            let length: f64 = length.parse().unwrap();
            [(length * cosine) as f32, (length * sine) as f32]
        };
        Ok(texts.iter().flat_map(vector).collect())
    }

    fn pairs(second: &[&str]) -> Pairs {
        let first = vec!["0".to_owned(); second.len()];
        Pairs { first, second: second.iter().map(|text| (*text).to_owned()).collect() }
    }

    fn figure(scores: &TaskScores, name: &str) -> f64 {
        scores.metrics[name].unwrap_or_else(|| panic!("{name} is absent"))
    }

    #[test]
    fn scored_pairs_give_correlations() {
        let examples =
            Examples::Scored { pairs: pairs(&["10", "80", "40", "60"]), gold: vec![5.0, 1.0, 4.0, 2.0] };
        let got = score_task(&examples, RESAMPLING, &mut angles).unwrap();
        assert!((figure(&got, "main_score") - 1.0).abs() < 1e-12);
        assert!((figure(&got, "euclidean_spearman") - 1.0).abs() < 1e-12);
        assert!(
            figure(&got, "cosine_pearson") > 0.9 && figure(&got, "pearson") == figure(&got, "cosine_pearson")
        );
        assert_eq!(got.examples[1].id, "1");
        assert!((got.examples[1].score - 80f64.to_radians().cos()).abs() < 1e-6);
        assert_eq!(got.examples[1].gold, Some(1.0));
        assert!(got.interval.is_some_and(|interval| interval.low <= 1.0 && interval.high <= 1.0 + 1e-12));
    }

    #[test]
    fn labelled_pairs_give_thresholds_in_each_measure() {
        let examples = Examples::Labelled {
            pairs: pairs(&["10", "80", "40", "60"]),
            labels: vec![true, false, true, false],
        };
        let got = score_task(&examples, RESAMPLING, &mut angles).unwrap();
        for name in ["main_score", "max_ap", "cosine_accuracy", "cosine_f1", "euclidean_ap", "similarity_ap"]
        {
            assert_eq!(figure(&got, name), 1.0, "{name}");
        }
        let cosine = (40f64.to_radians().cos() + 60f64.to_radians().cos()) / 2.0;
        assert!((figure(&got, "cosine_accuracy_threshold") - cosine).abs() < 1e-6);
        let distance = |degrees: f64| 2.0 * (degrees.to_radians() / 2.0).sin();
        let euclidean = (distance(40.0) + distance(60.0)) / 2.0;
        assert!((figure(&got, "euclidean_f1_threshold") - euclidean).abs() < 1e-6);
    }

    #[test]
    fn retrieval_ranks_by_similarity_and_breaks_ties_by_falling_id() {
        let named =
            |list: &[(&str, &str)]| list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let retrieval = Retrieval {
            queries: named(&[("q1", "0"), ("q2", "90")]),
            documents: named(&[("d1", "5"), ("d2", "85"), ("d3", "5"), ("d4", "45")]),
            judgements: vec![
                BTreeMap::from([("d1".to_owned(), 1.0)]),
                BTreeMap::from([("d2".to_owned(), 1.0), ("d4".to_owned(), 1.0)]),
            ],
        };
        let got = score_task(&Examples::Retrieval(retrieval), RESAMPLING, &mut angles).unwrap();
        // q1 finds d3 before d1; q2 finds both of its documents first.
        assert!((got.examples[0].score - 1.0 / 3f64.log2()).abs() < 1e-12, "{:?}", got.examples);
        assert_eq!(got.examples[1].score, 1.0);
        assert_eq!((figure(&got, "mrr_at_10"), figure(&got, "recall_at_1")), (0.75, 0.25));
        assert_eq!(figure(&got, "main_score"), figure(&got, "ndcg_at_10"));
    }

    #[test]
    fn retrieval_ranks_by_the_angle_whatever_the_lengths() {
        let named =
            |list: &[(&str, &str)]| list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let retrieval = Retrieval {
            queries: named(&[("q1", "0:3")]),
            // By dot product d2 (9.2) would stand before d1 (1.5).
            documents: named(&[("d1", "5:0.5"), ("d2", "40:4"), ("d3", "80:9")]),
            judgements: vec![BTreeMap::from([("d1".to_owned(), 1.0)])],
        };
        let got = score_task(&Examples::Retrieval(retrieval), RESAMPLING, &mut angles).unwrap();
        assert_eq!(figure(&got, "ndcg_at_1"), 1.0);
    }

    #[test]
    fn pairs_of_equal_direction_tie() {
        let all: Vec<String> = (1..90).map(|angle| angle.to_string()).collect();
        let pairs = Pairs { first: all.clone(), second: all };
        let similarities = Similarities::of(&pairs, &mut angles).unwrap();
        assert!(similarities.cosine.iter().all(|cosine| *cosine == 1.0), "{:?}", similarities.cosine);
    }

    #[test]
    fn word_overlap_is_measured_as_the_model_is() {
        // Overlap is 1, 0, 0 and 1.
        let pairs = || pairs(&["0", "80", "40", "0"]);
        let scored = Examples::Scored { pairs: pairs(), gold: vec![5.0, 1.0, 1.0, 5.0] };
        assert_eq!(score_task(&scored, RESAMPLING, &mut angles).unwrap().word_overlap, Some(1.0));
        let labelled = Examples::Labelled { pairs: pairs(), labels: vec![true, true, false, false] };
        // One of two at the first step, two of four at the second.
        assert_eq!(score_task(&labelled, RESAMPLING, &mut angles).unwrap().word_overlap, Some(0.5));
    }

    #[test]
    fn a_task_without_a_correlation_says_so() {
        let examples = Examples::Scored { pairs: pairs(&["10", "80"]), gold: vec![3.0, 3.0] };
        let got = score_task(&examples, RESAMPLING, &mut angles).unwrap();
        assert_eq!((got.metrics["main_score"], got.interval, got.word_overlap), (None, None, None));
    }
}
