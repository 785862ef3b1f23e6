//! An authorization request: its parameters, its validation, what it needs next, and its response.

pub mod authorize;
pub mod callback;
pub mod claims_request;
pub mod next_action;
pub mod params;
pub mod scope;
