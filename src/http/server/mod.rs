//! Connections, and the processing of every request: listeners, TLS, client addresses, rate limits, headers, access log.

pub(in crate::http) mod accept;
pub(in crate::http) mod access_log;
pub(in crate::http) mod client_address;
pub(in crate::http) mod connections;
pub(in crate::http) mod cors;
pub(in crate::http) mod listeners;
pub(in crate::http) mod middleware;
pub(in crate::http) mod rate_limit;
pub(in crate::http) mod timed_stream;
pub(in crate::http) mod tls;
