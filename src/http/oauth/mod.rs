//! Endpoints that applications and resource servers call.

pub(in crate::http) mod authorize;
pub(in crate::http) mod client_auth;
pub(in crate::http) mod discovery;
pub(in crate::http) mod introspect;
mod restored;
pub(in crate::http) mod revoke;
mod signing;
pub(in crate::http) mod token;
pub(in crate::http) mod userinfo;
