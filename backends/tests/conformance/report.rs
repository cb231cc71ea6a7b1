//! The table of what was seen on a device, and its place in docs/conformance.md.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use super::device::Device;

const HEAD: &str = "\
# Conformance

Every entry of every kernel and every product, on each device, against its specification in f64. An error is the
largest distance from the exact result, as a share of the largest value of its case where that is above 1. The last
column is the largest part that an error had of its own bound, which the specification derives by carrying rounding
errors along (backends/tests/conformance/bounded.rs); 0 stands where the bits must be exact.

Written by `MOTLEY_BLESS=1 cargo test --release -p motley-backends --test conformance`; devices that are not there keep
the table that they had.
";

/// Markdown of one device, under a heading of its name.
pub fn table(name: &str, device: &Device<'_>) -> String {
    let info = device.backend.info();
    let mut text = format!("## {name}\n\n{}\n\n", info.numerics_class);
    text.push_str("| entry | cases | largest error | largest share of the bound |\n|---|---:|---:|---:|\n");
    for (entry, seen) in &device.seen {
        let cases = seen.cases;
        let _infallible = writeln!(text, "| {entry} | {cases} | {:.1e} | {:.3} |", seen.error, seen.share);
    }
    text
}

/// Puts the table in its place in the document, if asked to.
pub fn bless(name: &str, table: &str) {
    // Devices are checked by threads of one process.
    static DOCUMENT: Mutex<()> = Mutex::new(());
    if std::env::var("MOTLEY_BLESS").is_ok_and(|value| value == "1") {
        let _one_at_a_time = DOCUMENT.lock().unwrap_or_else(PoisonError::into_inner);
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/conformance.md");
        let before = std::fs::read_to_string(&path).unwrap_or_default();
        std::fs::write(&path, replaced(&before, name, table)).expect("docs can be written");
    }
}

/// The document with one section anew, sections in the order of their names.
fn replaced(document: &str, name: &str, table: &str) -> String {
    let sections = document.split("\n## ").skip(1).map(|section| format!("## {}\n", section.trim_end()));
    let mut sections: Vec<String> =
        sections.filter(|section| section.lines().next() != Some(&format!("## {name}"))).collect();
    sections.push(format!("{}\n", table.trim_end()));
    sections.sort();
    format!("{HEAD}\n{}", sections.join("\n"))
}

#[test]
fn a_section_is_replaced_and_others_stay() {
    let first = replaced("", "b", "## b\n\nold\n");
    let both = replaced(&replaced(&first, "a", "## a\n\nx\n"), "b", "## b\n\nnew\n");
    assert_eq!(both, format!("{HEAD}\n## a\n\nx\n\n## b\n\nnew\n"));
}
