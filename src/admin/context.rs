//! The context of an operation, and the errors of operations.

use std::fmt;

use serde_json::Value;

use crate::accounts::FieldErrors;
use crate::audit::{Actor, Event, Name, Target};
use crate::db::{self, Transaction};
use crate::secret::Entropy;
use crate::time::Timestamp;

/// Actor, time and randomness of an operation.
#[derive(Clone, Debug)]
pub struct Context {
    /// The actor.
    pub actor: Actor,
    /// The instant of the change.
    pub now: Timestamp,
    /// Randomness for ids and secrets.
    pub entropy: Entropy,
    /// The reason that the actor gave, stored in the audit event and in revocation records.
    pub reason: Option<String>,
}

impl Context {
    /// Creates a context without a reason.
    pub fn new(actor: Actor, entropy: Entropy, now: Timestamp) -> Self {
        Self {
            actor,
            now,
            entropy,
            reason: None,
        }
    }

    /// Sets the reason.
    #[must_use]
    pub fn with_reason(self, reason: impl Into<String>) -> Self {
        Self {
            reason: Some(reason.into()),
            ..self
        }
    }

    /// Inserts the audit event of an operation, in the transaction of its change.
    pub(super) fn record(
        &self,
        tx: &mut Transaction<'_>,
        name: Name,
        target: Target,
        detail: Value,
    ) -> Result<(), db::Error> {
        tx.put_audit(&Event {
            at: self.now,
            name,
            actor: self.actor.clone(),
            target,
            reason: self.reason.clone(),
            detail,
        })
    }
}

/// Why an operation failed. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The invalid fields.
    #[error("{0}")]
    Invalid(FieldErrors),
    /// The entity does not exist.
    #[error("there is no {kind} `{id}`")]
    NotFound {
        /// What it is: `user`, `client`, `resource`, `session`.
        kind: &'static str,
        /// Its name or identifier.
        id: String,
    },
    /// The name or identifier is taken.
    #[error("the {kind} `{id}` exists already; an identifier is never assigned twice")]
    Exists {
        /// What it is.
        kind: &'static str,
        /// Its name or identifier.
        id: String,
    },
    /// The entity is in that state already.
    #[error("nothing to do for `{0}`")]
    Unchanged(String),
    /// The state of another entity prevents the operation; the text says which.
    #[error("{0}")]
    Conflict(String),
    /// The database failed.
    #[error(transparent)]
    Storage(#[from] db::Error),
}

impl AdminError {
    pub(super) fn not_found(kind: &'static str, id: impl fmt::Display) -> Self {
        let id = id.to_string();
        Self::NotFound { kind, id }
    }

    pub(super) fn changed(kind: &'static str, id: impl fmt::Display) -> Self {
        Self::Conflict(format!(
            "the {kind} `{id}` was changed by someone else in the meantime; nothing is changed, try again"
        ))
    }

    /// Turns the violation of a unique index into [`AdminError::Exists`].
    pub(super) fn taken(kind: &'static str, id: impl fmt::Display) -> impl Fn(db::Error) -> Self {
        let id = id.to_string();
        move |error| match error {
            db::Error::Duplicate(_) => Self::Exists {
                kind,
                id: id.clone(),
            },
            other => Self::Storage(other),
        }
    }
}

impl From<FieldErrors> for AdminError {
    fn from(errors: FieldErrors) -> Self {
        Self::Invalid(errors)
    }
}
