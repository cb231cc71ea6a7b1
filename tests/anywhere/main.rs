//! Suites that need nothing but this checkout and its toolchain.

mod documents;
mod purity;
mod tidy;
