//! The verifier as its users see it: tokens in, claims or a refusal out.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod feed_faults;
mod feed_issuer;
mod forged;
mod guarded_router;
mod guarded_service;
mod introspected;
mod issuer;
mod key_cache;
mod malformed;
mod recipes;
mod revoked;
mod second_sight;
mod signer;
mod tokens;
mod vector_frames;
mod vector_tokens;
mod vectors;
