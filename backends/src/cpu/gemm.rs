//! Products as tasks: tiles of rows by panels, spread over the workers.
//!
//! How the work is cut depends on the number of threads and changes no bit: each element of the output is one sum
//! over k, made by one call of [`tile::multiply`].

use std::cell::RefCell;

use motley_kernels::{Workers, gelu, multiversion};

use super::panels::Panels;
use super::tile::{self, PANEL, PanelRow, ROWS, Tile};

/// output = activation(alpha·left·right + bias) + beta·output
pub(super) struct Product<'a> {
    pub rows: usize,
    pub columns: usize,
    pub depth: usize,
    /// Row-major, `left_stride` from row to row.
    pub left: &'a [f32],
    pub left_stride: usize,
    pub right: &'a dyn Panels,
    pub output_stride: usize,
    pub finish: Finish<'a>,
}

/// What happens to finished sums.
#[derive(Clone, Copy)]
pub(super) struct Finish<'a> {
    pub alpha: f32,
    /// 0: the output is not read.
    pub beta: f32,
    pub bias: Option<&'a [f32]>,
    pub activation: Option<gelu::Kind>,
}

impl Finish<'_> {
    pub const PLAIN: Finish<'static> = Finish { alpha: 1.0, beta: 0.0, bias: None, activation: None };
}

/// Left rows of one task: with a depth of 1536 they take half of a core's second-level cache.
const ROWS_A_TASK: usize = 6 * ROWS;
/// Tasks for each thread, so that a late thread costs a fraction of its share.
const TASKS_A_THREAD: usize = 4;
/// A task should not be shorter than about ten microseconds.
const MULTIPLICATIONS_A_TASK_MIN: usize = 500_000;

thread_local! {
    static SCRATCH: RefCell<Vec<PanelRow>> = const { RefCell::new(vec![]) };
}

/// Output memory whose disjoint tiles are written by different tasks.
struct Shared {
    start: *mut f32,
    length: usize,
}

// SAFETY: each task writes its own rows and columns alone.
unsafe impl Sync for Shared {}

/// How the output is cut.
#[derive(Debug, PartialEq, Eq)]
struct Grid {
    /// Rows of one task.
    rows: usize,
    /// Panels of one task.
    panels: usize,
}

fn grid(product: &Product<'_>, threads: usize) -> Grid {
    let panels = product.columns.div_ceil(PANEL);
    let work = product.rows * product.columns * product.depth;
    let tasks = (work / MULTIPLICATIONS_A_TASK_MIN).clamp(1, threads * TASKS_A_THREAD);
    if threads == 1 && product.right.built() {
        return Grid { rows: product.rows, panels };
    }
    if product.right.built() {
        // Each panel is built once for all rows, unless there are fewer panels than threads.
        let groups = tasks.min(panels);
        let row_groups = if panels < threads { tasks.div_ceil(panels) } else { 1 };
        return Grid { rows: share(product.rows, row_groups), panels: panels.div_ceil(groups) };
    }
    let row_groups = product.rows.div_ceil(ROWS_A_TASK);
    let groups = tasks.div_ceil(row_groups).clamp(1, panels);
    Grid { rows: share(product.rows, row_groups), panels: panels.div_ceil(groups) }
}

/// `count` rows in `groups` of about equal size, in whole tiles where there are several.
fn share(count: usize, groups: usize) -> usize {
    if groups <= 1 { count } else { count.div_ceil(groups).next_multiple_of(ROWS) }
}

/// Computes the product into `output`.
///
/// # Panics
/// If a slice is shorter than the shape says.
pub(super) fn run(product: &Product<'_>, output: &mut [f32], workers: &Workers) {
    if product.rows == 0 || product.columns == 0 {
        return;
    }
    let grid = grid(product, workers.threads());
    let panels = product.columns.div_ceil(PANEL);
    let (row_tasks, panel_tasks) = (product.rows.div_ceil(grid.rows), panels.div_ceil(grid.panels));
    let shared = Shared { start: output.as_mut_ptr(), length: output.len() };
    workers.each(row_tasks * panel_tasks, |task| {
        let (row_task, panel_task) = (task / panel_tasks, task % panel_tasks);
        let rows = row_task * grid.rows..product.rows.min((row_task + 1) * grid.rows);
        let panels = panel_task * grid.panels..panels.min((panel_task + 1) * grid.panels);
        SCRATCH.with_borrow_mut(|scratch| {
            for index in panels {
                let panel = product.right.panel(index, scratch);
                // SAFETY: no other task has these rows of this panel.
                unsafe { one_panel(product, panel, (index, rows.clone()), &shared) };
            }
        });
    });
}

/// # Safety
/// No other thread writes these rows of this panel's columns.
unsafe fn one_panel(
    product: &Product<'_>,
    panel: &[PanelRow],
    (index, rows): (usize, std::ops::Range<usize>),
    shared: &Shared,
) {
    let mut tile = Tile([[0.0; PANEL]; ROWS]);
    // Fourteen rows are one tile, fifteen are eight and seven: tiles of about equal height keep registers busy.
    let tiles = rows.len().div_ceil(ROWS);
    let height = rows.len().div_ceil(tiles);
    let columns = index * PANEL..product.columns.min((index + 1) * PANEL);
    let bias = product.finish.bias.map(|bias| &bias[columns.clone()]);
    let finish = Finish { bias, ..product.finish };
    for first in rows.clone().step_by(height) {
        let count = height.min(rows.end - first);
        let left = &product.left[first * product.left_stride..];
        tile::multiply(count, (left, product.left_stride), &panel[..product.depth], &mut tile);
        let start = first * product.output_stride + columns.start;
        let length = (count - 1) * product.output_stride + columns.len();
        assert!(start + length <= shared.length, "the output has all its rows");
        let place = Place {
            // SAFETY: in bounds by the assertion.
            start: unsafe { shared.start.add(start) },
            stride: product.output_stride,
            rows: count,
            columns: columns.len(),
        };
        store(&mut tile, &place, &finish);
    }
}

/// Where a tile goes.
struct Place {
    start: *mut f32,
    stride: usize,
    rows: usize,
    columns: usize,
}

impl Place {
    /// Row `r` of the tile's part of the output.
    #[inline(always)]
    fn row(&self, r: usize) -> &mut [f32] {
        // SAFETY: `one_panel` checked that all rows lie in the output, and no other task writes these columns.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(r * self.stride), self.columns) }
    }
}

fn store(tile: &mut Tile, place: &Place, finish: &Finish<'_>) {
    if finish.alpha != 1.0 || finish.bias.is_some() {
        scale_and_bias(tile, (place.rows, place.columns), finish);
    }
    if let Some(kind) = finish.activation {
        gelu::in_place(tile.0[..place.rows].as_flattened_mut(), kind as u32);
    }
    copy_out(tile, place, finish.beta);
}

multiversion! {
    fn scale_and_bias(tile: &mut Tile, size: (usize, usize), finish: &Finish<'_>) {
        let _ = FMA;
        let (rows, columns) = size;
        let mut bias = [0.0; PANEL];
        if let Some(values) = finish.bias {
            bias[..columns].copy_from_slice(&values[..columns]);
        }
        for row in &mut tile.0[..rows] {
            for j in 0..PANEL {
                row[j] = row[j] * finish.alpha + bias[j];
            }
        }
    }
}

multiversion! {
    fn copy_out(tile: &Tile, place: &Place, beta: f32) {
        let _ = FMA;
        for r in 0..place.rows {
            let target = place.row(r);
            if beta == 0.0 && target.len() == PANEL {
                target.copy_from_slice(&tile.0[r]);
            } else if beta == 0.0 {
                target.copy_from_slice(&tile.0[r][..target.len()]);
            } else {
                for (target, value) in target.iter_mut().zip(&tile.0[r]) {
                    *target = *target * beta + *value;
                }
            }
        }
    }
}
