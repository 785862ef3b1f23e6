//! Background tasks of a node. [`crate::app`] constructs and starts them.

pub mod audit_seals;
mod clean_up;
pub mod feed;
mod keys;
pub mod logout_notifications;

pub use clean_up::run as clean_up;
pub use keys::run as maintain_keys;
