//! Detects tokens that show that the database was restored from an older backup.

use crate::app::App;
use crate::id::GrantId;
use crate::oauth::grants::refresh_token::Rejection;
use crate::oauth::{Cause, Code, Error, StorageError};

/// Rejects a token with 503 if its missing grant shows that the database was restored.
pub(super) async fn check_lost_grant(app: &App, grant: Option<&GrantId>) -> Result<(), Error> {
    match grant {
        Some(grant) if app.note_lost_grant(grant).await? => Err(Error {
            code: Code::TemporarilyUnavailable,
            detail: Rejection::GrantLost.into(),
            source: None,
            compared: None,
        }),
        _ => Ok(()),
    }
}

/// Records the evidence if a rejected token request shows that the database was restored. `grant` is the grant of
/// the refresh token in the request. Returns the error for the client.
pub(super) async fn record_evidence(
    app: &App,
    error: Error,
    grant: Option<&GrantId>,
) -> Result<Error, StorageError> {
    match (error.detail.cause, grant) {
        (Cause::RefreshTokenAhead, _) => app.note_restored("refresh").await?,
        (Cause::GrantInactive, Some(grant)) if app.note_lost_grant(grant).await? => {
            return Ok(Error::invalid_grant(Rejection::GrantLost));
        }
        _ => {}
    }
    Ok(error)
}
