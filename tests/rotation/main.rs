//! Automatic key rotation without failed requests: formulas, two years, races, faults, and a soak test over
//! HTTP.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "../fixtures/mod.rs"]
mod fixtures;

mod faults;
mod formulas;
mod nodes;
mod processes;
mod races;
mod rings;
mod rows;
mod soak;
mod years;
