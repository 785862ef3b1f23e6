//! Flows through the public interface, each on SQLite and on PostgreSQL.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "../fixtures/mod.rs"]
mod fixtures;

mod account;
mod audit;
mod authorities;
mod backchannel_logout;
mod checklist;
mod client_secrets;
mod code_flow;
mod consent;
mod cors;
mod endpoints;
mod enumeration;
mod feed;
mod feed_numbers;
mod introspection;
mod limits;
mod navigation;
mod networks;
mod parameters;
mod private_key_jwt;
mod reauthentication;
mod refusals;
mod restores;
mod setup;
mod tokens;
