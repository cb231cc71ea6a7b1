//! What memory is used for, live and at its peak, against a budget.

use std::sync::Mutex;

use crate::Error;

/// What an allocation is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Category {
    Weights = 0,
    Adapter = 1,
    Optimizer = 2,
    Activations = 3,
    Workspace = 4,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub live: u64,
    pub peak: u64,
}

/// Bytes by category, and of all together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryReport {
    categories: [Usage; Category::ALL.len()],
    pub total: Usage,
}

impl MemoryReport {
    pub fn of(&self, category: Category) -> Usage {
        self.categories[category as usize]
    }
}

/// Counts allocations of one device and refuses those beyond its budget.
pub(crate) struct Ledger {
    limit: Option<u64>,
    report: Mutex<MemoryReport>,
}

impl Ledger {
    pub(crate) fn new(limit: Option<u64>) -> Self {
        Ledger { limit, report: Mutex::new(MemoryReport::default()) }
    }

    pub(crate) fn take(&self, bytes: u64, category: Category) -> Result<(), Error> {
        let mut report = self.lock();
        if let Some(limit) = self.limit.filter(|limit| report.total.live + bytes > *limit) {
            let free = limit.saturating_sub(report.total.live);
            return Err(Error::OutOfMemory { requested: bytes, free, category: category.name() });
        }
        let usage = &mut report.categories[category as usize];
        usage.live += bytes;
        usage.peak = usage.peak.max(usage.live);
        report.total.live += bytes;
        report.total.peak = report.total.peak.max(report.total.live);
        Ok(())
    }

    pub(crate) fn give(&self, bytes: u64, category: Category) {
        let mut report = self.lock();
        report.categories[category as usize].live -= bytes;
        report.total.live -= bytes;
    }

    pub(crate) fn report(&self) -> MemoryReport {
        *self.lock()
    }

    pub(crate) fn reset_peak(&self) {
        let mut report = self.lock();
        for usage in &mut report.categories {
            usage.peak = usage.live;
        }
        report.total.peak = report.total.live;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, MemoryReport> {
        // Counting cannot panic between lock and unlock, so the figures are whole even if the mutex is poisoned.
        self.report.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_budget_refuses_with_figures_and_keeps_counting() {
        let ledger = Ledger::new(Some(100));
        ledger.take(70, Category::Weights).unwrap();
        let error = ledger.take(40, Category::Activations).unwrap_err();
        assert!(matches!(error, Error::OutOfMemory { requested: 40, free: 30, .. }), "{error}");
        ledger.give(70, Category::Weights);
        ledger.take(40, Category::Activations).unwrap();
        let report = ledger.report();
        assert_eq!(report.of(Category::Weights), Usage { live: 0, peak: 70 });
        assert_eq!(report.total, Usage { live: 40, peak: 70 });
    }
}
