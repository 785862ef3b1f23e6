//! Creates the first administrator: by a one-time link, or temporarily by the configuration.

use serde_json::json;

use super::context::{AdminError, Context};
use super::sessions;
use super::users::{Administrator, insert};
use crate::accounts::admin::{GrantedBy, TEMPORARY};
use crate::accounts::session::Session;
use crate::accounts::user::User;
use crate::audit::{Name, Target};
use crate::db::Transaction;
use crate::secret::Hash;
use crate::time::Timestamp;

/// Stores a one-time link unless there is an administrator. Returns whether it was stored.
///
/// # Errors
/// [`AdminError::Storage`].
pub fn create_link(
    tx: &mut Transaction<'_>,
    ctx: &Context,
    link: &Hash,
    expires_at: Timestamp,
) -> Result<bool, AdminError> {
    if tx.has_admin(ctx.now)? {
        return Ok(false);
    }
    tx.put_setup_link(link, ctx.now, expires_at)?;
    let detail = json!({ "expires_at": expires_at.to_string() });
    ctx.record(tx, Name::SetupLinkCreated, Target::SetupLink, detail)?;
    Ok(true)
}

/// Binds a link to the browser that opened it. Returns whether the link was valid. A link works once.
///
/// # Errors
/// [`AdminError::Storage`].
pub fn open_link(
    tx: &mut Transaction<'_>,
    ctx: &Context,
    link: &Hash,
    browser: &Hash,
) -> Result<bool, AdminError> {
    if tx.has_admin(ctx.now)? || !tx.take_setup_link(link, browser, ctx.now)? {
        return Ok(false);
    }
    ctx.record(tx, Name::SetupLinkOpened, Target::SetupLink, json!({}))?;
    Ok(true)
}

/// Creates the administrator of the browser that opened a link, with a session.
///
/// # Errors
/// [`AdminError::Invalid`]; [`AdminError::Exists`] for a user name that is taken; [`AdminError::Unchanged`]
/// if the link was used or expired, or there is an administrator already.
pub fn set_up(
    tx: &mut Transaction<'_>,
    ctx: &Context,
    browser: &Hash,
    (user, password_hash): (&User, &str),
    session: &Session,
) -> Result<(), AdminError> {
    user.check()?;
    if tx.find_credentials(&user.username)?.is_some() {
        let id = user.username.as_str().to_owned();
        return Err(AdminError::Exists { kind: "user", id });
    }
    if tx.has_admin(ctx.now)? || !tx.use_setup_link(browser, ctx.now)? {
        return Err(AdminError::Unchanged(Target::SetupLink.to_string()));
    }
    let admin = Administrator {
        granted_by: GrantedBy::Setup,
        expires_at: None,
    };
    insert(tx, ctx, user, Some(password_hash), Some(admin))?;
    let ctx = ctx.clone().with_reason("setup link");
    let target = Target::User(user.id.clone());
    ctx.record(tx, Name::AdminBootstrap, target, json!({}))?;
    sessions::open(tx, &ctx, session, None)?;
    Ok(())
}

/// Creates the administrator of the configuration, who expires after [`TEMPORARY`].
///
/// # Errors
/// [`AdminError::Exists`] for a user name that is taken.
pub fn configure(
    tx: &mut Transaction<'_>,
    ctx: &Context,
    user: &User,
    password_hash: &str,
) -> Result<(), AdminError> {
    let expires_at = ctx.now + TEMPORARY;
    let admin = Administrator {
        granted_by: GrantedBy::Bootstrap,
        expires_at: Some(expires_at),
    };
    insert(tx, ctx, user, Some(password_hash), Some(admin))?;
    let detail = json!({ "expires_at": expires_at.to_string() });
    let target = Target::User(user.id.clone());
    let ctx = ctx.clone().with_reason("configuration");
    ctx.record(tx, Name::AdminBootstrap, target, detail)?;
    Ok(())
}
