//! Pages that users see.

pub(in crate::http) mod account;
pub(in crate::http) mod consent;
pub(in crate::http) mod login;
pub(in crate::http) mod logout;
pub(in crate::http) mod setup;
