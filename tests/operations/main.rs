//! Operators' tasks with the real binary, on SQLite and on PostgreSQL.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "../fixtures/mod.rs"]
mod fixtures;

mod alerts;
mod audit;
mod canary;
mod lines;
mod manager;
mod metrics;
mod proxies;
mod reload;
mod stop;
mod tokens;
#[cfg(feature = "otel")]
mod traces;

use fixtures::{installation, site};
