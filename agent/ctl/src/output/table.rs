//! Tables of text: columns as wide as their widest cell, two spaces between, no rules, no colour.

/// Rows under a header. Numbers are to be formatted by the caller; a column named in `right` is right-aligned.
#[derive(Debug, Clone)]
pub struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<usize>,
}

impl Table {
    pub fn new(header: &[&str], right: &[usize]) -> Self {
        Table { rows: vec![header.iter().map(|cell| cell.to_string()).collect()], right: right.to_vec() }
    }

    pub fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.rows[0].len());
        self.rows.push(cells);
    }

    pub fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    pub fn render(&self) -> String {
        let columns = self.rows[0].len();
        let width =
            |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().enumerate().map(|(column, cell)| {
                let space = " ".repeat(widths[column] - cell.chars().count());
                if self.right.contains(&column) { space + cell } else { cell.clone() + &space }
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// `key  value` lines with the values in one column.
pub fn facts(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(key, _)| key.chars().count()).max().unwrap_or(0);
    pairs.iter().map(|(key, value)| format!("{key:width$}  {value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_space() {
        let mut table = Table::new(&["JOB", "NAME", "STATE"], &[0]);
        table.row(vec!["7".into(), "finance".into(), "running".into()]);
        table.row(vec!["12".into(), "a".into(), "".into()]);
        assert_eq!(table.render(), "JOB  NAME     STATE\n  7  finance  running\n 12  a\n");
    }
}
