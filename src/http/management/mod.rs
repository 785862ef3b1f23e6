//! Endpoints of the management listener: health and metrics.

pub(in crate::http) mod health;
pub(in crate::http) mod metrics;
