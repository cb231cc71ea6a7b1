//! How sure a figure is: percentile intervals over resampled examples (Efron and Tibshirani, 1993, chapter 13).
//!
//! Two models are compared on the *same* resamples of the same examples: the examples' own difficulty, most of the
//! noise of a single figure, cancels out.

use super::draw::Draws;

/// How often examples are drawn anew, and from which seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resampling {
    pub resamples: u32,
    pub seed: u64,
}

/// A 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

/// The difference second − first on the same examples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairedDifference {
    pub difference: f64,
    /// 95 % interval of the difference.
    pub interval: Interval,
    /// Share of resamples in which the second is not better than the first.
    pub not_better: f64,
}

const LOWER_SHARE: f64 = 0.025;

/// 95 % interval of `statistic` over `count` examples; it is given the drawn examples' indices.
///
/// Resamples without a statistic (a correlation of equal values) are left out. Absent when none has one.
pub fn interval(
    count: usize,
    resampling: Resampling,
    mut statistic: impl FnMut(&[u32]) -> Option<f64>,
) -> Option<Interval> {
    let mut values = Vec::with_capacity(resampling.resamples as usize);
    for_each_resample(count, resampling, |indices| values.extend(statistic(indices)));
    percentile_interval(values)
}

/// The paired bootstrap: `statistic` gives (first, second) for the drawn examples' indices.
///
/// Absent when the statistic of all examples, or of every resample, is.
pub fn paired(
    count: usize,
    resampling: Resampling,
    mut statistic: impl FnMut(&[u32]) -> Option<(f64, f64)>,
) -> Option<PairedDifference> {
    let all: Vec<u32> = (0..u32::try_from(count).ok()?).collect();
    let (first, second) = statistic(&all)?;
    let mut values = Vec::with_capacity(resampling.resamples as usize);
    for_each_resample(count, resampling, |indices| {
        values.extend(statistic(indices).map(|(first, second)| second - first));
    });
    let not_better = values.iter().filter(|value| **value <= 0.0).count() as f64 / values.len().max(1) as f64;
    Some(PairedDifference { difference: second - first, interval: percentile_interval(values)?, not_better })
}

/// Calls `visit` with `count` indices drawn with replacement, once a resample.
fn for_each_resample(count: usize, resampling: Resampling, mut visit: impl FnMut(&[u32])) {
    if count == 0 {
        return;
    }
    let mut indices = vec![0u32; count];
    for resample in 0..resampling.resamples {
        let draws = Draws::new(resampling.seed, u64::from(resample));
        for (position, index) in indices.iter_mut().enumerate() {
            *index = draws.below(position as u64, count as u64) as u32;
        }
        visit(&indices);
    }
}

fn percentile_interval(mut values: Vec<f64>) -> Option<Interval> {
    if values.is_empty() {
        return None;
    }
    values.sort_by(f64::total_cmp);
    Some(Interval { low: percentile(&values, LOWER_SHARE), high: percentile(&values, 1.0 - LOWER_SHARE) })
}

/// Linear between neighbours, as numpy's default.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let position = share * (sorted.len() - 1) as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (position - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESAMPLING: Resampling = Resampling { resamples: 1000, seed: 42 };

    fn mean(values: &[f64], indices: &[u32]) -> f64 {
        indices.iter().map(|&index| values[index as usize]).sum::<f64>() / indices.len() as f64
    }

    #[test]
    fn percentiles_are_linear_between_neighbours() {
        let sorted: Vec<f64> = (0..=10).map(f64::from).collect();
        assert_eq!(percentile(&sorted, 0.5), 5.0);
        assert!((percentile(&sorted, 0.025) - 0.25).abs() < 1e-12);
        assert_eq!(percentile(&[3.0], 0.975), 3.0);
    }

    #[test]
    fn interval_of_a_mean_is_two_standard_errors_wide() {
        // 400 values, half 0 and half 1: standard error 0.025, so ±1.96 · 0.025.
        let values: Vec<f64> = (0..400).map(|index| f64::from(index % 2)).collect();
        let got = interval(values.len(), RESAMPLING, |indices| Some(mean(&values, indices))).unwrap();
        assert!((got.low - 0.451).abs() < 0.006 && (got.high - 0.549).abs() < 0.006, "{got:?}");
        assert_eq!(Some(got), interval(values.len(), RESAMPLING, |indices| Some(mean(&values, indices))));
        let other = Resampling { seed: 43, ..RESAMPLING };
        assert_ne!(Some(got), interval(values.len(), other, |indices| Some(mean(&values, indices))));
        assert_eq!(interval(0, RESAMPLING, |_| Some(1.0)), None);
        assert_eq!(interval(5, RESAMPLING, |_| None), None);
    }

    #[test]
    fn pairing_sees_a_small_steady_difference_under_large_noise() {
        let first: Vec<f64> = (0..200).map(|index| Draws::new(9, 0).unit(index) * 10.0).collect();
        let second: Vec<f64> = first
            .iter()
            .enumerate()
            .map(|(index, value)| value + 0.1 * f64::from(index as u32 % 3))
            .collect();
        let got = paired(200, RESAMPLING, |i| Some((mean(&first, i), mean(&second, i)))).unwrap();
        assert!((got.difference - 0.0995).abs() < 1e-9, "{got:?}");
        assert!(got.interval.low > 0.08 && got.interval.high < 0.12 && got.not_better == 0.0, "{got:?}");
        let same = paired(200, RESAMPLING, |i| Some((mean(&first, i), mean(&first, i)))).unwrap();
        assert_eq!(
            (same.difference, same.interval, same.not_better),
            (0.0, Interval { low: 0.0, high: 0.0 }, 1.0)
        );
    }
}
