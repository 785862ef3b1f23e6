//! People: who they are, how they prove it, their logins and what they allowed.

pub mod admin;
pub mod consent;
mod field_error;
pub mod name;
pub mod password;
pub mod session;
pub mod throttle;
pub mod user;

pub use field_error::{FieldError, FieldErrors};
