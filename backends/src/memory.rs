//! Counting memory: live and peak bytes by category, against a limit.

use std::fmt;
use std::sync::Mutex;

use crate::{Error, Result};

/// What memory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Category {
    Weights,
    Adapter,
    Optimizer,
    Activations,
    Workspace,
}

impl Category {
    pub const ALL: [Category; 5] = [
        Category::Weights,
        Category::Adapter,
        Category::Optimizer,
        Category::Activations,
        Category::Workspace,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Category::Weights => "weights",
            Category::Adapter => "adapter",
            Category::Optimizer => "optimizer",
            Category::Activations => "activations",
            Category::Workspace => "workspace",
        }
    }
}

/// Bytes of one category.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CategoryReport {
    pub live: u64,
    pub peak: u64,
}

/// Bytes of a device, by category and in all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryReport {
    /// In the order of [`Category::ALL`].
    pub categories: [CategoryReport; 5],
    pub live: u64,
    /// Largest sum of all categories at one time; not the sum of their peaks.
    pub peak: u64,
    /// Freed, but kept for the next allocation; not part of `live`.
    pub cached: u64,
}

impl MemoryReport {
    pub fn category(&self, category: Category) -> CategoryReport {
        self.categories[category as usize]
    }
}

/// The count of one device.
pub(crate) struct Ledger {
    device: String,
    limit: Option<u64>,
    report: Mutex<MemoryReport>,
}

impl Ledger {
    pub fn new(device: &str, limit: Option<u64>) -> Self {
        Ledger { device: device.to_owned(), limit, report: Mutex::default() }
    }

    /// Counts `bytes` as live.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if they would pass the limit.
    pub fn take(&self, bytes: u64, category: Category) -> Result<()> {
        let mut report = self.report();
        let free = self.limit.map_or(u64::MAX, |limit| limit.saturating_sub(report.live));
        if bytes > free {
            let (device, category) = (self.device.clone(), category.name());
            return Err(Error::OutOfMemory { device, category, requested: bytes, free });
        }
        report.live += bytes;
        report.peak = report.peak.max(report.live);
        let entry = &mut report.categories[category as usize];
        entry.live += bytes;
        entry.peak = entry.peak.max(entry.live);
        Ok(())
    }

    pub fn give_back(&self, bytes: u64, category: Category) {
        let mut report = self.report();
        report.live -= bytes;
        report.categories[category as usize].live -= bytes;
    }

    pub fn report(&self) -> std::sync::MutexGuard<'_, MemoryReport> {
        self.report.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn limit(&self) -> Option<u64> {
        self.limit
    }
}

/// Bytes in the largest binary unit that leaves a whole part.
pub(crate) struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        write!(f, "{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_and_peak_are_counted_and_the_limit_holds() {
        let ledger = Ledger::new("cpu:0", Some(100));
        ledger.take(60, Category::Weights).unwrap();
        ledger.take(40, Category::Activations).unwrap();
        ledger.give_back(40, Category::Activations);
        let error = ledger.take(41, Category::Workspace).unwrap_err().to_string();
        assert!(error.starts_with("workspace needs 41 B more on cpu:0, 40 B are free\nhint:"), "{error}");
        let report = ledger.report().clone();
        assert_eq!((report.live, report.peak), (60, 100));
        assert_eq!(report.category(Category::Activations), CategoryReport { live: 0, peak: 40 });
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(Size(9_771_050_599).to_string(), "9.1 GiB");
        assert_eq!(Size(2048).to_string(), "2.0 KiB");
    }
}
