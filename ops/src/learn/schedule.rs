//! Learning rate as a function of the step, as Hugging Face's schedules compute it.
//!
//! ```text
//! warm-up    rate·k/w                                  k < w
//! linear     rate·(n − k)/(n − w)                      from there to 0
//! cosine     rate·(1 + cos(π·(k − w)/(n − w)))/2
//! constant   rate
//! ```
//!
//! k counts optimizer steps from 0, n is their total, w those of warm-up: with warm-up the first step changes
//! nothing, as in `get_linear_schedule_with_warmup`. A warm-up longer than the run is not shortened: the rate then
//! never reaches its peak, as there.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScheduleKind {
    Linear,
    Cosine,
    Constant,
}

/// How the learning rate changes over the steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    pub kind: ScheduleKind,
    pub warmup_steps: u64,
}

impl Schedule {
    /// Warm-up as a share of all steps, rounded up.
    pub fn with_warmup_ratio(kind: ScheduleKind, ratio: f64, total_steps: u64) -> Self {
        Schedule { kind, warmup_steps: (total_steps as f64 * ratio).ceil() as u64 }
    }

    /// Factor of the learning rate in step `index` (from 0) of `total`; 0 to 1.
    pub fn factor(&self, index: u64, total: u64) -> f64 {
        let (k, n, w) = (index as f64, total as f64, self.warmup_steps as f64);
        if index < self.warmup_steps {
            return k / w.max(1.0);
        }
        let rest = (n - w).max(1.0);
        match self.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Linear => ((n - k) / rest).max(0.0),
            ScheduleKind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * ((k - w) / rest).min(1.0)).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_those_of_the_field() {
        let factors = |kind, warmup_steps, total| -> Vec<f64> {
            (0..=total).map(|index| Schedule { kind, warmup_steps }.factor(index, total)).collect()
        };
        assert_eq!(factors(ScheduleKind::Linear, 2, 6), [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]);
        assert_eq!(factors(ScheduleKind::Constant, 2, 3), [0.0, 0.5, 1.0, 1.0]);
        let cosine = factors(ScheduleKind::Cosine, 0, 4);
        for (got, wanted) in
            cosine.iter().zip([1.0, 0.853_553_390_593_273_8, 0.5, 0.146_446_609_406_726_2, 0.0])
        {
            assert!((got - wanted).abs() < 1e-15, "{cosine:?}");
        }
    }

    #[test]
    fn warmup_is_rounded_up_and_may_be_everything() {
        assert_eq!(Schedule::with_warmup_ratio(ScheduleKind::Linear, 0.1, 101).warmup_steps, 11);
        let all = Schedule { kind: ScheduleKind::Linear, warmup_steps: 4 };
        assert_eq!((all.factor(3, 4), all.factor(4, 4)), (0.75, 0.0));
    }

    #[test]
    fn a_warmup_longer_than_the_run_never_reaches_the_peak() {
        for kind in [ScheduleKind::Linear, ScheduleKind::Cosine, ScheduleKind::Constant] {
            let schedule = Schedule { kind, warmup_steps: 100 };
            // 49/100: `get_linear_schedule_with_warmup(optimizer, 100, 50)` in its last step.
            assert_eq!((schedule.factor(0, 50), schedule.factor(49, 50)), (0.0, 0.49));
        }
    }
}
