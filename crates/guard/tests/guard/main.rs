//! Tests of the `portcullis-guard` program, started as a process and called over real sockets.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod checked;
mod documented;
mod faults;
#[path = "../../../verifier/tests/verifier/feed_issuer.rs"]
#[allow(dead_code, reason = "the verifier's tests use all of it")]
mod feed_issuer;
mod http;
mod issuer;
mod process;
mod proxied;
mod proxies;
mod service;
mod settings;
#[path = "../../../verifier/tests/verifier/signer.rs"]
#[allow(dead_code, reason = "the verifier's tests use all of it")]
mod signer;
