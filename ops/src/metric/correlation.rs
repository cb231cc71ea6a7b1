//! Correlation of two lists of numbers: Pearson's, and Spearman's with average ranks.

/// Pearson's correlation, −1 to 1. Two passes in f64.
///
/// Absent when fewer than two values are given, when one list is constant, or when a value is not finite.
///
/// # Panics
/// When the lists differ in length.
pub fn pearson(left: &[f64], right: &[f64]) -> Option<f64> {
    assert_eq!(left.len(), right.len(), "correlation is of pairs");
    if left.len() < 2 {
        return None;
    }
    let count = left.len() as f64;
    let left_mean = left.iter().sum::<f64>() / count;
    let right_mean = right.iter().sum::<f64>() / count;
    let (mut product, mut left_square, mut right_square) = (0.0, 0.0, 0.0);
    for (a, b) in left.iter().zip(right) {
        let (a, b) = (a - left_mean, b - right_mean);
        product += a * b;
        left_square += a * a;
        right_square += b * b;
    }
    let scale = left_square.sqrt() * right_square.sqrt();
    let value = product / scale;
    (scale > 0.0 && value.is_finite()).then(|| value.clamp(-1.0, 1.0))
}

/// Spearman's rank correlation: Pearson's of the average ranks, as `scipy.stats.spearmanr`.
///
/// Absent as for [`pearson`].
///
/// # Panics
/// When the lists differ in length.
pub fn spearman(left: &[f64], right: &[f64]) -> Option<f64> {
    if left.iter().chain(right).any(|value| value.is_nan()) {
        return None;
    }
    pearson(&average_ranks(left), &average_ranks(right))
}

/// Ranks from 1; equal values share the average of the ranks they take up.
pub fn average_ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let value = values[order[start]];
        let length = order[start..].iter().take_while(|&&index| values[index] == value).count().max(1);
        // Ranks start+1 ..= start+length, on average:
        let rank = start as f64 + (length as f64 + 1.0) / 2.0;
        for &index in &order[start..start + length] {
            ranks[index] = rank;
        }
        start += length;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_share_their_average_rank() {
        assert_eq!(average_ranks(&[10.0, 20.0, 20.0, 5.0]), [2.0, 3.5, 3.5, 1.0]);
        assert_eq!(average_ranks(&[1.0, 1.0, 1.0]), [2.0, 2.0, 2.0]);
        assert_eq!(average_ranks(&[-0.0, 0.0]), [1.5, 1.5]);
        assert!(average_ranks(&[]).is_empty());
    }

    #[test]
    fn correlations_meet_hand_computed_values() {
        // Means 3 and 4; Σab = 8, Σa² = 10, Σb² = 10.
        let value = pearson(&[1.0, 2.0, 3.0, 4.0, 5.0], &[2.0, 4.0, 3.0, 6.0, 5.0]).unwrap();
        assert!((value - 0.8).abs() < 1e-15, "{value}");
        // Ranks 1 2 3 4 against 1 2.5 2.5 4: Σab = 4.5, Σa² = 5, Σb² = 4.5; 4.5/√22.5.
        let value = spearman(&[0.1, 0.2, 0.3, 0.4], &[1.0, 7.0, 7.0, 9.0]).unwrap();
        assert!((value - 4.5 / 22.5f64.sqrt()).abs() < 1e-15, "{value}");
        // Monotone is perfect for ranks, not for values.
        assert!((spearman(&[1.0, 2.0, 3.0], &[1.0, 10.0, 1000.0]).unwrap() - 1.0).abs() < 1e-15);
        assert!(pearson(&[1.0, 2.0, 3.0], &[1.0, 10.0, 1000.0]).unwrap() < 0.9);
        assert!((pearson(&[1.0, 2.0], &[5.0, 3.0]).unwrap() + 1.0).abs() < 1e-15);
    }

    #[test]
    fn what_has_no_correlation_is_absent() {
        for (left, right) in [
            (vec![], vec![]),
            (vec![1.0], vec![2.0]),
            (vec![1.0, 1.0], vec![1.0, 2.0]),
            (vec![1.0, f64::NAN], vec![1.0, 2.0]),
        ] {
            assert_eq!(pearson(&left, &right), None, "{left:?}");
            assert_eq!(spearman(&left, &right), None, "{left:?}");
        }
    }
}
