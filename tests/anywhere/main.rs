//! Suites that need nothing but this checkout and its toolchain.

// Helpers of tests, outside of #[test] functions, fail by panicking too.
#![allow(clippy::unwrap_used)]

mod documents;
mod finance;
mod purity;
mod tidy;
