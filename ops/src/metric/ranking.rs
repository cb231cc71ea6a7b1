//! How well a search ranks: nDCG, average precision, recall, precision and reciprocal rank at cut-offs, as `trec_eval`.

/// The cut-offs that MTEB reports.
pub const CUTOFFS: [usize; 7] = [1, 3, 5, 10, 20, 100, 1000];

/// Scores of one query, or their mean over queries, one value a cut-off of [`CUTOFFS`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct QueryScores {
    pub ndcg: [f64; CUTOFFS.len()],
    pub average_precision: [f64; CUTOFFS.len()],
    pub recall: [f64; CUTOFFS.len()],
    pub precision: [f64; CUTOFFS.len()],
    pub reciprocal_rank: [f64; CUTOFFS.len()],
}

/// Scores one query.
///
/// `found`: the judged relevance of each retrieved document, best first, 0 where nothing was judged. `judged`: every
/// judgement of the query. Relevance above 0 is relevant; nDCG gains are linear in it and discounted by log₂(rank+1);
/// the ideal order is that of all judgements. A query with nothing relevant scores 0.
pub fn query_scores(found: &[f64], judged: &[f64]) -> QueryScores {
    let mut ideal: Vec<f64> = judged.iter().copied().filter(|relevance| *relevance > 0.0).collect();
    ideal.sort_by(|a, b| b.total_cmp(a));
    let mut scores = QueryScores::default();
    if ideal.is_empty() {
        return scores;
    }
    let relevant = ideal.len() as f64;
    for (slot, &cutoff) in CUTOFFS.iter().enumerate() {
        let top = &found[..cutoff.min(found.len())];
        let (mut hits, mut precision_sum) = (0.0, 0.0);
        for (index, _) in top.iter().enumerate().filter(|(_, relevance)| **relevance > 0.0) {
            hits += 1.0;
            let rank = index as f64 + 1.0;
            precision_sum += hits / rank;
            if hits == 1.0 {
                scores.reciprocal_rank[slot] = 1.0 / rank;
            }
        }
        scores.ndcg[slot] = gain(top) / gain(&ideal[..cutoff.min(ideal.len())]);
        scores.average_precision[slot] = precision_sum / relevant;
        scores.recall[slot] = hits / relevant;
        scores.precision[slot] = hits / cutoff as f64;
    }
    scores
}

/// The mean over queries; nothing for no query.
pub fn mean_scores(queries: &[QueryScores]) -> QueryScores {
    let mut mean = QueryScores::default();
    let count = queries.len().max(1) as f64;
    for slot in 0..CUTOFFS.len() {
        let average = |value: fn(&QueryScores) -> &[f64; CUTOFFS.len()]| {
            queries.iter().map(|query| value(query)[slot]).sum::<f64>() / count
        };
        mean.ndcg[slot] = average(|query| &query.ndcg);
        mean.average_precision[slot] = average(|query| &query.average_precision);
        mean.recall[slot] = average(|query| &query.recall);
        mean.precision[slot] = average(|query| &query.precision);
        mean.reciprocal_rank[slot] = average(|query| &query.reciprocal_rank);
    }
    mean
}

/// Discounted cumulative gain.
fn gain(relevance: &[f64]) -> f64 {
    relevance.iter().enumerate().map(|(index, value)| value.max(0.0) / (index as f64 + 2.0).log2()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_1: usize = 0;
    const AT_3: usize = 1;
    const AT_10: usize = 3;

    #[test]
    fn one_query_meets_hand_computed_values() {
        // Found: nothing, relevance 2, relevance 1; one more of relevance 3 was missed.
        let got = query_scores(&[0.0, 2.0, 1.0], &[1.0, 2.0, 3.0, 0.0]);
        let log3 = 3f64.log2();
        let ideal = 3.0 + 2.0 / log3 + 1.0 / 2.0;
        assert!((got.ndcg[AT_10] - (2.0 / log3 + 0.5) / ideal).abs() < 1e-15);
        assert_eq!(got.ndcg[AT_1], 0.0);
        assert!((got.recall[AT_3] - 2.0 / 3.0).abs() < 1e-15);
        assert!((got.precision[AT_10] - 0.2).abs() < 1e-15);
        assert_eq!(got.reciprocal_rank, [0.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]);
        // (1/2 + 2/3) / 3.
        assert!((got.average_precision[AT_10] - (0.5 + 2.0 / 3.0) / 3.0).abs() < 1e-15);
    }

    #[test]
    fn perfect_and_hopeless_searches_are_one_and_zero() {
        let perfect = query_scores(&[1.0, 1.0, 0.0], &[1.0, 1.0]);
        assert_eq!(
            (perfect.ndcg[AT_10], perfect.average_precision[AT_10], perfect.recall[AT_10]),
            (1.0, 1.0, 1.0)
        );
        assert_eq!(perfect.recall[AT_1], 0.5);
        for (found, judged) in
            [(vec![0.0, 0.0], vec![1.0]), (vec![], vec![1.0]), (vec![0.0], vec![0.0]), (vec![], vec![])]
        {
            assert_eq!(query_scores(&found, &judged), QueryScores::default());
        }
    }

    #[test]
    fn mean_is_over_queries() {
        let both = [query_scores(&[1.0], &[1.0]), query_scores(&[0.0], &[1.0])];
        assert_eq!(mean_scores(&both).ndcg, [0.5; CUTOFFS.len()]);
        assert_eq!(mean_scores(&[]), QueryScores::default());
    }
}
