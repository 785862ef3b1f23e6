//! What breaks around the server, broken on purpose: real processes, real Postgres. A test is named after
//! its fault, `fNN_…`; `docs/faults.md` lists all of them, with those that live in other suites.
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

/// A fault is alone on the machine, or its figures would be those of its neighbours.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs what is asynchronous, on this thread.
fn runs<T>(work: impl Future<Output = T>) -> T {
    actix_web::rt::System::new().block_on(work)
}
