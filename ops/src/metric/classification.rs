//! How well a score tells pairs that belong together from pairs that do not, by MTEB's threshold sweep.

/// Scores of one similarity over labelled pairs. Shares are 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BinaryScores {
    pub accuracy: f64,
    pub accuracy_threshold: f64,
    pub f1: f64,
    pub f1_threshold: f64,
    /// Precision and recall at the threshold of the best F1.
    pub precision: f64,
    pub recall: f64,
    pub average_precision: f64,
}

/// Accuracy and F1 at their best thresholds, and average precision. Higher scores mean more alike.
///
/// The sweep is that of MTEB's pair classification: examples sorted by falling score, a threshold half-way between
/// each two neighbours, the last example never alone below. No threshold divides equal scores, so that the order in
/// which examples are given does not matter.
///
/// # Panics
/// When the lists differ in length.
pub fn binary_scores(scores: &[f64], labels: &[bool]) -> BinaryScores {
    assert_eq!(scores.len(), labels.len(), "one label a score");
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let rows: Vec<(f64, bool)> = order.iter().map(|&index| (scores[index], labels[index])).collect();
    let (accuracy, accuracy_threshold) = best_accuracy(&rows);
    let mut best = BinaryScores {
        accuracy,
        accuracy_threshold,
        f1: 0.0,
        f1_threshold: 0.0,
        precision: 0.0,
        recall: 0.0,
        average_precision: average_precision_of_sorted(&rows),
    };
    sweep_f1(&rows, &mut best);
    best
}

/// Area under precision over recall as a sum of steps, one step a distinct score (`sklearn.average_precision_score`).
/// Nothing positive: 0.
///
/// # Panics
/// When the lists differ in length.
pub fn average_precision(scores: &[f64], labels: &[bool]) -> f64 {
    assert_eq!(scores.len(), labels.len(), "one label a score");
    let mut rows: Vec<(f64, bool)> = scores.iter().copied().zip(labels.iter().copied()).collect();
    rows.sort_by(|a, b| b.0.total_cmp(&a.0));
    average_precision_of_sorted(&rows)
}

fn average_precision_of_sorted(rows: &[(f64, bool)]) -> f64 {
    let positives = rows.iter().filter(|row| row.1).count();
    if positives == 0 {
        return 0.0;
    }
    let (mut sum, mut correct, mut taken) = (0.0, 0usize, 0usize);
    while taken < rows.len() {
        let score = rows[taken].0;
        let length = rows[taken..].iter().take_while(|row| row.0 == score).count().max(1);
        let gained = rows[taken..taken + length].iter().filter(|row| row.1).count();
        taken += length;
        correct += gained;
        sum += gained as f64 / positives as f64 * (correct as f64 / taken as f64);
    }
    sum
}

fn best_accuracy(rows: &[(f64, bool)]) -> (f64, f64) {
    let (mut best, mut threshold) = (0.0, -1.0);
    let mut right_above = 0usize;
    let mut right_below = rows.iter().filter(|row| !row.1).count();
    for pair in rows.windows(2) {
        if pair[0].1 {
            right_above += 1;
        } else {
            right_below -= 1;
        }
        if pair[0].0 == pair[1].0 {
            continue;
        }
        let accuracy = (right_above + right_below) as f64 / rows.len() as f64;
        if accuracy > best {
            best = accuracy;
            threshold = (pair[0].0 + pair[1].0) / 2.0;
        }
    }
    (best, threshold)
}

fn sweep_f1(rows: &[(f64, bool)], best: &mut BinaryScores) {
    let positives = rows.iter().filter(|row| row.1).count() as f64;
    let mut correct = 0.0;
    for (index, pair) in rows.windows(2).enumerate() {
        if pair[0].1 {
            correct += 1.0;
        }
        if correct == 0.0 || pair[0].0 == pair[1].0 {
            continue;
        }
        let precision = correct / (index as f64 + 1.0);
        let recall = correct / positives;
        let f1 = 2.0 * precision * recall / (precision + recall);
        if f1 > best.f1 {
            best.f1 = f1;
            best.precision = precision;
            best.recall = recall;
            best.f1_threshold = (pair[0].0 + pair[1].0) / 2.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweep_meets_hand_computed_values() {
        // Sorted: 0.9 yes, 0.8 yes, 0.7 no, 0.6 yes, 0.2 no.
        let scores = [0.2, 0.9, 0.7, 0.8, 0.6];
        let labels = [false, true, false, true, true];
        let got = binary_scores(&scores, &labels);
        // Cut after 2: 2 + 2 of 5 right. Cut after 4: 3 + 1 of 5. The first best wins.
        assert_eq!((got.accuracy, got.accuracy_threshold), (0.8, 0.75));
        // F1 after 2: p 1, r 2/3 → 0.8. After 4: p 3/4, r 1 → 6/7.
        assert!((got.f1 - 6.0 / 7.0).abs() < 1e-15, "{got:?}");
        assert_eq!((got.precision, got.recall), (0.75, 1.0));
        assert!((got.f1_threshold - 0.4).abs() < 1e-15);
        // 1/3·1 + 1/3·1 + 1/3·3/4.
        assert!((got.average_precision - 11.0 / 12.0).abs() < 1e-15);
    }

    #[test]
    fn no_threshold_divides_equal_scores() {
        // Three scores ten times over, with 8, 5 and 1 positive examples. The figures are those of mteb 2.26.24.
        let positives = [8, 5, 1];
        let mut rows: Vec<(f64, bool)> =
            (0..30).map(|row| ([0.75, 0.5, 0.25][row % 3], row / 3 < positives[row % 3])).collect();
        for _ in 0..30 {
            rows.rotate_left(1);
            for rows in [rows.clone(), rows.iter().rev().copied().collect()] {
                let (scores, labels): (Vec<f64>, Vec<bool>) = rows.into_iter().unzip();
                let got = binary_scores(&scores, &labels);
                assert_eq!((got.accuracy, got.accuracy_threshold), (22.0 / 30.0, 0.625));
                assert!((got.f1 - 0.764_705_882_352_941_2).abs() < 1e-15, "{got:?}");
                assert_eq!((got.precision, got.recall, got.f1_threshold), (0.65, 13.0 / 14.0, 0.375));
            }
        }
        let equal = binary_scores(&[0.5; 4], &[true, false, false, true]);
        assert_eq!((equal.accuracy, equal.f1), (0.0, 0.0), "nothing is told apart");
    }

    #[test]
    fn equal_scores_are_one_step_of_precision() {
        // All equal: the order of the labels must not matter.
        assert_eq!(average_precision(&[0.5; 4], &[true, false, false, false]), 0.25);
        assert_eq!(average_precision(&[0.5; 4], &[false, false, false, true]), 0.25);
        // 0.9: one of two; 0.1: one of two. 1/2·1/2 + 1/2·2/4.
        assert_eq!(average_precision(&[0.9, 0.1, 0.9, 0.1], &[true, true, false, false]), 0.5);
    }

    #[test]
    fn corner_cases_give_numbers() {
        assert_eq!(average_precision(&[], &[]), 0.0);
        assert_eq!(average_precision(&[0.3, 0.4], &[false, false]), 0.0);
        assert_eq!(average_precision(&[0.3, 0.4], &[true, true]), 1.0);
        let none = binary_scores(&[0.3, 0.4, 0.5], &[false, false, false]);
        assert_eq!((none.f1, none.average_precision), (0.0, 0.0));
        let perfect = binary_scores(&[0.9, 0.8, 0.1, 0.2], &[true, true, false, false]);
        assert_eq!((perfect.accuracy, perfect.f1, perfect.average_precision), (1.0, 1.0, 1.0));
    }
}
