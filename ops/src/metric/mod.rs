//! What a model is worth: correlation, pair classification, ranking, and how sure one can be of it.
//!
//! Everything here is a pure function of numbers in f64: no model, no file, no thread. The definitions are those of
//! MTEB, so that a figure stands beside published ones.
//!
//! ```text
//! correlation      Pearson, and Spearman with average ranks
//! classification   accuracy, F1 and average precision of a score that should tell pairs apart
//! ranking          nDCG, average precision, recall, precision and reciprocal rank at a cut-off
//! bootstrap        95 % intervals, alone and of the difference of two models on the same examples
//! draw             the counter-based random numbers behind the bootstrap and behind data orders
//! ```

pub mod bootstrap;
pub mod classification;
pub mod correlation;
pub mod draw;
pub mod ranking;

pub use bootstrap::{Interval, PairedDifference, Resampling};
pub use classification::BinaryScores;
pub use correlation::{average_ranks, pearson, spearman};
pub use draw::Draws;
pub use ranking::{CUTOFFS, QueryScores};
