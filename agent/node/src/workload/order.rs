//! Which rows each optimizer step takes: a pure function of (seed, epoch, step), so that resuming needs only the step.
//!
//! ```text
//! epoch     a permutation of all rows (or the file's order), drawn from (seed, epoch)
//! batches   runs of `batch_size` rows of it; the last may be smaller, or is left out (`drop_last`)
//! step      `accumulation_steps` batches; a step never crosses the end of an epoch
//! ```

use motley_ops::metric::Draws;
use motley_scheduler_core::document::train::Steps;

/// The stream of draws that belongs to data orders; epochs are counted from here.
const ORDER_STREAM: u64 = 0x6f72_6465_7200_0000;

/// The order of one training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DataOrder {
    rows: u32,
    batch_size: u32,
    accumulation_steps: u32,
    seed: Option<u64>,
    batches_per_epoch: u64,
    total_steps: u64,
}

/// One optimizer step's rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StepRows {
    /// From 0.
    pub(crate) epoch: u64,
    /// Row numbers of each batch.
    pub(crate) batches: Vec<Vec<u32>>,
    /// Rows taken by all steps before this one.
    pub(crate) rows_before: u64,
}

impl DataOrder {
    /// `rows` is the number of rows in the file. Nothing when not even one step comes of it.
    pub(crate) fn new(steps: &Steps, rows: u32) -> Option<DataOrder> {
        let batch_size = u64::from(steps.batch_size.max(1));
        let batches_per_epoch =
            if steps.drop_last { u64::from(rows) / batch_size } else { u64::from(rows).div_ceil(batch_size) };
        let steps_per_epoch = batches_per_epoch.div_ceil(u64::from(steps.accumulation_steps.max(1)));
        let all = steps_per_epoch * u64::from(steps.epochs);
        let total_steps = steps.max_steps.map_or(all, |most| {
            // `max_steps` alone decides: more epochs are begun when it asks for them.
            if steps_per_epoch == 0 { 0 } else { most }
        });
        (total_steps > 0).then_some(DataOrder {
            rows,
            batch_size: steps.batch_size.max(1),
            accumulation_steps: steps.accumulation_steps.max(1),
            seed: steps.shuffle.then_some(steps.seed),
            batches_per_epoch,
            total_steps,
        })
    }

    pub(crate) fn total_steps(&self) -> u64 {
        self.total_steps
    }

    pub(crate) fn steps_per_epoch(&self) -> u64 {
        self.batches_per_epoch.div_ceil(u64::from(self.accumulation_steps))
    }

    /// The rows of step `step` (from 0). Costs a permutation; see [`Cursor`] for walking.
    #[cfg(test)]
    fn step(&self, step: u64) -> StepRows {
        Cursor::new(*self).step(step)
    }

    fn rows_per_epoch(&self) -> u64 {
        (self.batches_per_epoch * u64::from(self.batch_size)).min(u64::from(self.rows))
    }

    fn epoch_order(&self, epoch: u64) -> Vec<u32> {
        match self.seed {
            Some(seed) => Draws::new(seed, ORDER_STREAM.wrapping_add(epoch)).permutation(self.rows),
            None => (0..self.rows).collect(),
        }
    }
}

/// Walks an order, keeping the permutation of the current epoch.
#[derive(Debug)]
pub(crate) struct Cursor {
    order: DataOrder,
    epoch: Option<(u64, Vec<u32>)>,
}

impl Cursor {
    pub(crate) fn new(order: DataOrder) -> Cursor {
        Cursor { order, epoch: None }
    }

    /// The rows of step `step` (from 0).
    pub(crate) fn step(&mut self, step: u64) -> StepRows {
        let order = self.order;
        let epoch = step / order.steps_per_epoch();
        let first_batch = step % order.steps_per_epoch() * u64::from(order.accumulation_steps);
        let last_batch = (first_batch + u64::from(order.accumulation_steps)).min(order.batches_per_epoch);
        let permutation = match self.epoch.take() {
            Some((kept, permutation)) if kept == epoch => permutation,
            _ => order.epoch_order(epoch),
        };
        let batch = |number: u64| {
            let start = (number * u64::from(order.batch_size)) as usize;
            let end = (start + order.batch_size as usize).min(permutation.len());
            permutation[start..end].to_vec()
        };
        let rows = StepRows {
            epoch,
            batches: (first_batch..last_batch).map(batch).collect(),
            rows_before: epoch * order.rows_per_epoch() + first_batch * u64::from(order.batch_size),
        };
        self.epoch = Some((epoch, permutation));
        rows
    }
}

impl StepRows {
    pub(crate) fn count(&self) -> u64 {
        self.batches.iter().map(|batch| batch.len() as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(epochs: u32, batch_size: u32, accumulation_steps: u32) -> Steps {
        Steps {
            epochs,
            max_steps: None,
            batch_size,
            accumulation_steps,
            seed: 42,
            shuffle: true,
            drop_last: false,
            token_budget: 16384,
            gradient_checkpointing: None,
            log_every: 10,
        }
    }

    #[test]
    fn every_epoch_takes_every_row_once_in_another_order() {
        for (rows, batch_size, accumulation) in [(1, 1, 1), (10, 3, 1), (10, 3, 2), (64, 8, 3), (7, 100, 4)] {
            let order = DataOrder::new(&steps(3, batch_size, accumulation), rows).unwrap();
            let mut cursor = Cursor::new(order);
            let mut epochs = vec![Vec::new(); 3];
            let mut taken = 0;
            for number in 0..order.total_steps() {
                let step = cursor.step(number);
                assert_eq!(step.rows_before, taken, "{rows} {batch_size} {accumulation} {number}");
                assert_eq!(step, order.step(number), "a walked order is a computed one");
                taken += step.count();
                epochs[step.epoch as usize].extend(step.batches.concat());
            }
            assert_eq!(taken, 3 * u64::from(rows));
            if rows > 5 {
                assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2]);
            }
            for mut epoch in epochs {
                epoch.sort_unstable();
                assert_eq!(epoch, (0..rows).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn accumulation_ends_with_the_epoch() {
        let order = DataOrder::new(&steps(2, 3, 2), 10).unwrap();
        assert_eq!((order.steps_per_epoch(), order.total_steps()), (2, 4));
        let sizes = |step: u64| order.step(step).batches.iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!((sizes(0), sizes(1), sizes(2)), (vec![3, 3], vec![3, 1], vec![3, 3]));
        let dropping = Steps { drop_last: true, ..steps(2, 3, 2) };
        let order = DataOrder::new(&dropping, 10).unwrap();
        assert_eq!(order.step(1).batches.iter().map(Vec::len).collect::<Vec<_>>(), [3]);
        assert_eq!(order.step(2).rows_before, 9);
    }

    #[test]
    fn settings_decide_order_and_length() {
        let plain = Steps { shuffle: false, ..steps(1, 4, 1) };
        assert_eq!(DataOrder::new(&plain, 10).unwrap().step(1).batches, [vec![4, 5, 6, 7]]);
        let other = Steps { seed: 43, ..steps(1, 4, 1) };
        assert_ne!(
            DataOrder::new(&other, 10).unwrap().step(0),
            DataOrder::new(&steps(1, 4, 1), 10).unwrap().step(0)
        );
        let short = Steps { max_steps: Some(2), ..steps(9, 4, 1) };
        assert_eq!(DataOrder::new(&short, 10).unwrap().total_steps(), 2);
        let long = Steps { max_steps: Some(7), ..steps(1, 4, 1) };
        assert_eq!(DataOrder::new(&long, 10).unwrap().step(6).epoch, 2);
        assert_eq!(DataOrder::new(&steps(1, 4, 1), 0), None);
        assert_eq!(DataOrder::new(&Steps { drop_last: true, ..steps(1, 4, 1) }, 3), None);
    }
}
