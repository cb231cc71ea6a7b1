//! A matrix [k, columns] cut into panels of 32 columns.

use motley_kernels::Workers;

use super::PANEL;

/// Panels [k][32], one behind the other; zeros behind the last column.
pub(super) struct Panels {
    data: Vec<f32>,
    k: usize,
}

impl Panels {
    /// Of `rows` [columns, k]: each row becomes a column.
    pub(super) fn transposed(rows: &[f32], [columns, k]: [usize; 2], workers: &Workers) -> Self {
        let mut data = vec![0.0; columns.div_ceil(PANEL) * PANEL * k];
        workers.pieces(&mut data, (k * PANEL).max(1), |index, panel| {
            let first = index * PANEL;
            for column in 0..PANEL.min(columns - first) {
                for (p, value) in rows[(first + column) * k..][..k].iter().enumerate() {
                    panel[p * PANEL + column] = *value;
                }
            }
        });
        Panels { data, k }
    }

    /// Of `rows` [k, columns].
    pub(super) fn straight(rows: &[f32], [k, columns]: [usize; 2], workers: &Workers) -> Self {
        let mut data = vec![0.0; columns.div_ceil(PANEL) * PANEL * k];
        workers.pieces(&mut data, (k * PANEL).max(1), |index, panel| {
            let first = index * PANEL;
            let count = PANEL.min(columns - first);
            for (p, target) in panel.chunks_exact_mut(PANEL).enumerate() {
                target[..count].copy_from_slice(&rows[p * columns + first..][..count]);
            }
        });
        Panels { data, k }
    }

    pub(super) fn panel(&self, index: usize) -> &[f32] {
        &self.data[index * self.k * PANEL..][..self.k * PANEL]
    }

    /// The rows that `transposed` was given.
    pub(super) fn rows_of_transposed(&self, [columns, k]: [usize; 2]) -> Vec<f32> {
        let at = |column: usize, p: usize| self.panel(column / PANEL)[p * PANEL + column % PANEL];
        (0..columns).flat_map(|column| (0..k).map(move |p| at(column, p))).collect()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.data.len() as u64 * 4
    }

    pub(super) fn bytes_of(columns: usize, k: usize) -> u64 {
        (columns.div_ceil(PANEL) * PANEL * k) as u64 * 4
    }
}
