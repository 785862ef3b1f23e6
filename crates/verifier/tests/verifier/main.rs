//! Tests of the public API of the verifier.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod actix_extractor;
mod examples;
mod feed_faults;
mod feed_issuer;
mod forged;
mod introspection;
mod issuer;
mod key_cache;
mod malformed;
mod revoked;
mod signer;
mod token_cache;
mod tokens;
mod tower_layer;
mod vector_frames;
mod vector_tokens;
mod vectors;
