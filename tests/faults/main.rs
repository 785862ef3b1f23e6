//! Faults around the server, caused deliberately with real processes and a real PostgreSQL server. A test is
//! named after its fault, `fNN_…`; `docs/faults.md` lists all of them, including those in other test
//! programs.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "../fixtures/mod.rs"]
mod fixtures;

mod at_once;
mod backup;
mod bouncer;
mod clean_up;
mod disk;
mod failover;
mod load_clients;
mod logins;
mod migrations;
mod postgres;
#[cfg(target_os = "linux")]
mod power;
mod sockets;
mod sqlite;
mod starved;
mod storage;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Runs one fault at a time on this machine, because concurrent ones would distort the measurements.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs asynchronous work on this thread.
fn runs<T>(work: impl Future<Output = T>) -> T {
    actix_web::rt::System::new().block_on(work)
}
