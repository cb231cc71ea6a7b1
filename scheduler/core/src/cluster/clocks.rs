//! How long things may take before somebody worries: plain figures, and what they have to be to each other.

use crate::unit::Span;

/// Clocks of the fleet; all configurable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clocks {
    pub beat: Span,
    pub suspect_after: Span,
    pub lost_after: Span,
    /// After a start of the scheduler nobody is declared lost before.
    pub grace_after_start: Span,
    pub lease: Span,
    /// How long a single-node runner goes on computing past its lease.
    pub keep_running: Span,
    /// How long a stopped attempt may take to end, and after which the stop is said again. Agents read the documents,
    /// and allow a server its drain where that is longer.
    pub stop_grace: Span,
}

impl Default for Clocks {
    fn default() -> Self {
        Clocks {
            beat: Span::from_seconds(5),
            suspect_after: Span::from_seconds(15),
            lost_after: Span::from_seconds(30),
            grace_after_start: Span::from_seconds(60),
            lease: Span::from_seconds(30),
            keep_running: Span::from_seconds(600),
            stop_grace: Span::from_seconds(30),
        }
    }
}

/// Agents beat no faster.
pub const BEAT_MIN: Span = Span { milliseconds: 50 };

/// Clocks that contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClocksError {
    #[error("a beat of {beat} is too short\nhint: {BEAT_MIN} is the shortest")]
    Beat { beat: Span },
    #[error(
        "nodes would be suspect after {suspect_after}, but beat every {beat}\n\
         hint: twice the beat at least, so that one late beat is no suspicion"
    )]
    Suspect { beat: Span, suspect_after: Span },
    #[error(
        "nodes would be lost after {lost_after}, but suspect after {suspect_after} only\n\
         hint: a node is suspect first; make the time until it is lost the longer one"
    )]
    Lost { suspect_after: Span, lost_after: Span },
    #[error(
        "a lease of {lease} outlasts the {lost_after} after which its node is lost\n\
         hint: two attempts of one job would hold a lease at once"
    )]
    Lease { lease: Span, lost_after: Span },
}

impl Clocks {
    /// Whether they fit each other.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn check(&self) -> Result<(), ClocksError> {
        let Clocks { beat, suspect_after, lost_after, lease, .. } = *self;
        if beat < BEAT_MIN {
            return Err(ClocksError::Beat { beat });
        }
        if suspect_after.milliseconds < beat.milliseconds.saturating_mul(2) {
            return Err(ClocksError::Suspect { beat, suspect_after });
        }
        if lost_after <= suspect_after {
            return Err(ClocksError::Lost { suspect_after, lost_after });
        }
        if lease > lost_after {
            return Err(ClocksError::Lease { lease, lost_after });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_contradict_each_other_are_refused() {
        assert_eq!(Clocks::default().check(), Ok(()));
        let seconds = Span::from_seconds;
        let with = |beat, suspect, lost, lease| {
            let clocks =
                Clocks { beat, suspect_after: suspect, lost_after: lost, lease, ..Clocks::default() };
            clocks.check().map_err(|error| error.to_string())
        };
        assert_eq!(with(BEAT_MIN, seconds(1), seconds(2), seconds(2)), Ok(()));
        for (clocks, word) in [
            (with(Span { milliseconds: 49 }, seconds(1), seconds(2), seconds(2)), "beat of 49ms"),
            (with(seconds(8), seconds(15), seconds(30), seconds(30)), "beat every 8s"),
            (with(seconds(5), seconds(15), seconds(15), seconds(15)), "suspect after 15s only"),
            (with(seconds(5), seconds(15), seconds(30), seconds(31)), "lease of 31s"),
        ] {
            let error = clocks.unwrap_err();
            assert!(error.contains(word) && error.contains("hint:"), "{error}");
        }
    }
}
