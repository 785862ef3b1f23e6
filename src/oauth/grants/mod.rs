//! The grants: one file each. `grant_types!` in [`super::grant`] is their registry.

pub mod authorization_code;
pub mod client_credentials;
pub mod refresh_token;
pub mod request;
