//! Users: accounts, passwords, sign-in, sessions and consents.

pub mod admin;
pub mod consent;
mod field_error;
pub mod name;
pub mod password;
pub mod session;
pub mod sign_in;
pub mod throttle;
pub mod user;

pub use field_error::{FieldError, FieldErrors};
