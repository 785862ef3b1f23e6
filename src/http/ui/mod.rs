//! Pages that users see, and their forms.

pub(in crate::http) mod account;
pub(in crate::http) mod assets;
pub(in crate::http) mod consent;
mod form;
pub(in crate::http) mod login;
pub(in crate::http) mod logout;
mod scopes;
mod session;
pub(in crate::http) mod setup;
