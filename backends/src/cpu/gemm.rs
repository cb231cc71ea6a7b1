//! Products as tasks: tiles of rows by panels, spread over the workers.
//!
//! How the work is cut depends on the number of threads and changes no bit: each element of the output is one sum
//! over k, made by one call of [`tile::multiply`].

use std::cell::RefCell;

use motley_kernels::{Workers, gelu};

use super::panels::Panels;
use super::tile::{self, PANEL, PanelRow, ROWS, Rows, Target, Tile};

/// output = alpha·activation(left·right + bias) + beta·output
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
    /// In panels.
    pub bias: Option<&'a [PanelRow]>,
    pub activation: Option<gelu::Kind>,
}

impl Finish<'_> {
    pub const PLAIN: Finish<'static> = Finish { alpha: 1.0, beta: 0.0, bias: None, activation: None };

    fn only_bias(&self) -> bool {
        self.alpha == 1.0 && self.beta == 0.0 && self.activation.is_none()
    }
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

// SAFETY: each task writes its own rows and columns alone; `run` asserts that rows do not overlap.
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
    assert!(
        product.rows == 1 || product.output_stride >= product.columns,
        "rows of the output do not overlap"
    );
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
    // Fourteen rows are one tile, fifteen are eight and seven: tiles of about equal height keep registers busy.
    let height = rows.len().div_ceil(rows.len().div_ceil(ROWS));
    let columns = index * PANEL..product.columns.min((index + 1) * PANEL);
    let finish = &product.finish;
    let bias = finish.bias.map(|bias| &bias[index]);
    let panel = &panel[..product.depth];
    for first in rows.clone().step_by(height) {
        let count = height.min(rows.end - first);
        let left =
            Rows { data: &product.left[first * product.left_stride..], stride: product.left_stride, count };
        let start = first * product.output_stride + columns.start;
        assert!(
            start + (count - 1) * product.output_stride + columns.len() <= shared.length,
            "the output has all its rows"
        );
        // SAFETY: in bounds by the assertion.
        let target = Target { start: unsafe { shared.start.add(start) }, stride: product.output_stride };
        if finish.only_bias() && columns.len() == PANEL {
            // SAFETY: the target's rows are whole panels in bounds, and the caller's alone.
            unsafe { tile::multiply(left, panel, bias, target) };
            continue;
        }
        let mut sums = Tile([[0.0; PANEL]; ROWS]);
        // SAFETY: a tile has room for all rows.
        unsafe { tile::multiply(left, panel, bias, Target::tile(&mut sums)) };
        if let Some(kind) = finish.activation {
            gelu::in_place(sums.0[..count].as_flattened_mut(), kind as u32);
        }
        // SAFETY: the target's rows have these columns in bounds, and are the caller's alone.
        unsafe { copy_out(&sums, (target.start, target.stride), (count, columns.len()), finish) };
    }
}

/// # Safety
/// `size` rows and columns of the target may be written, and nobody else uses them.
unsafe fn copy_out(
    tile: &Tile,
    (start, stride): (*mut f32, usize),
    (rows, columns): (usize, usize),
    finish: &Finish<'_>,
) {
    for (r, sums) in tile.0[..rows].iter().enumerate() {
        // SAFETY: the caller's promise.
        let target = unsafe { std::slice::from_raw_parts_mut(start.add(r * stride), columns) };
        if finish.alpha == 1.0 && finish.beta == 0.0 {
            target.copy_from_slice(&sums[..columns]);
        } else if finish.beta == 0.0 {
            target.iter_mut().zip(sums).for_each(|(target, sum)| *target = sum * finish.alpha);
        } else {
            let add = |(target, sum): (&mut f32, &f32)| *target = *target * finish.beta + sum * finish.alpha;
            target.iter_mut().zip(sums).for_each(add);
        }
    }
}
