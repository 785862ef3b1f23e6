//! Users: accounts, passwords, and the revocation of everything that a user holds.

use serde_json::json;

use super::context::{AdminError, Context};
use crate::accounts::admin::{Admin, GrantedBy};
use crate::accounts::user::User;
use crate::audit::{Name, RevocationReason, Target};
use crate::db::Transaction;
use crate::id::UserId;
use crate::time::Timestamp;

/// A user to be created.
#[derive(Clone, Debug)]
pub struct NewUser {
    /// The account.
    pub user: User,
    /// The Argon2id hash of the first password, in PHC form. Without one the user cannot sign in yet.
    pub password_hash: Option<String>,
    /// The administrator role of the user, if any.
    pub admin: Option<Administrator>,
}

/// The administrator role of a new user.
#[derive(Clone, Copy, Debug)]
pub struct Administrator {
    /// How the role was granted.
    pub granted_by: GrantedBy,
    /// When the role expires; `None`: never.
    pub expires_at: Option<Timestamp>,
}

/// Creates a user.
///
/// # Errors
/// [`AdminError::Invalid`]; [`AdminError::Exists`] for a user name that is taken.
pub fn create(tx: &mut Transaction<'_>, ctx: &Context, new: NewUser) -> Result<User, AdminError> {
    let NewUser {
        user,
        password_hash,
        admin,
    } = new;
    user.check()?;
    insert(tx, ctx, &user, password_hash.as_deref(), admin)?;
    let detail = json!({ "admin": admin.is_some() });
    ctx.record(tx, Name::UserCreated, Target::User(user.id.clone()), detail)?;
    Ok(user)
}

/// Inserts the rows of a user. All users are created here.
pub(super) fn insert(
    tx: &mut Transaction<'_>,
    ctx: &Context,
    user: &User,
    password_hash: Option<&str>,
    admin: Option<Administrator>,
) -> Result<(), AdminError> {
    tx.put_user(user)
        .map_err(AdminError::taken("user", user.username.as_str()))?;
    if let Some(phc) = password_hash {
        tx.put_password(&user.id, phc, ctx.now)?;
    }
    if let Some(admin) = admin {
        tx.put_admin(&Admin {
            user_id: user.id.clone(),
            granted_by: admin.granted_by,
            granted_at: ctx.now,
            expires_at: admin.expires_at,
        })?;
    }
    Ok(())
}

/// Replaces the profile of a user. The event contains the names of changed fields but not their values,
/// which are personal data.
///
/// # Errors
/// [`AdminError::Invalid`], [`AdminError::NotFound`].
pub fn update(tx: &mut Transaction<'_>, ctx: &Context, after: &User) -> Result<(), AdminError> {
    after.check()?;
    let not_found = || AdminError::not_found("user", after.username.as_str());
    let before = tx.find_user(&after.id)?.ok_or_else(not_found)?;
    let changed = [
        ("name", before.name != after.name),
        ("email", before.email != after.email),
        (
            "email_verified",
            before.email_verified != after.email_verified,
        ),
        ("claims", before.claims != after.claims),
    ];
    let fields: Vec<&str> = changed
        .iter()
        .filter(|(_, is_changed)| *is_changed)
        .map(|(field, _)| *field)
        .collect();
    tx.update_user(after, ctx.now)?;
    let target = Target::User(after.id.clone());
    ctx.record(tx, Name::UserUpdated, target, json!({ "fields": fields }))?;
    Ok(())
}

/// Replaces a password. Revokes every older session, grant and token of the user, and clears the counters
/// of failed sign-ins.
///
/// # Errors
/// [`AdminError::Storage`].
pub fn set_password(
    tx: &mut Transaction<'_>,
    ctx: &Context,
    id: &UserId,
    password_hash: &str,
) -> Result<(), AdminError> {
    tx.put_password(id, password_hash, ctx.now)?;
    tx.revoke_all_for_user(id, &RevocationReason::PasswordChanged, &ctx.actor, ctx.now)?;
    tx.clear_user_throttles(id)?;
    let target = Target::User(id.clone());
    ctx.record(tx, Name::UserCredentialChanged, target, json!({}))?;
    Ok(())
}

/// Disables an account and revokes everything that the user holds.
///
/// # Errors
/// [`AdminError::Unchanged`] if it is disabled already.
pub fn disable(tx: &mut Transaction<'_>, ctx: &Context, id: &UserId) -> Result<(), AdminError> {
    if !tx.disable_user(id, &ctx.actor, ctx.now)? {
        return Err(AdminError::Unchanged(id.to_string()));
    }
    ctx.record(tx, Name::UserDisabled, Target::User(id.clone()), json!({}))?;
    Ok(())
}

/// Enables an account. What the user held before stays revoked.
///
/// # Errors
/// [`AdminError::Unchanged`] if it is enabled.
pub fn enable(tx: &mut Transaction<'_>, ctx: &Context, id: &UserId) -> Result<(), AdminError> {
    if !tx.enable_user(id)? {
        return Err(AdminError::Unchanged(id.to_string()));
    }
    ctx.record(tx, Name::UserEnabled, Target::User(id.clone()), json!({}))?;
    Ok(())
}

/// Revokes every session, grant and token of a user.
///
/// # Errors
/// [`AdminError::Storage`].
pub fn sign_out_everywhere(
    tx: &mut Transaction<'_>,
    ctx: &Context,
    id: &UserId,
) -> Result<(), AdminError> {
    tx.revoke_all_for_user(
        id,
        &RevocationReason::SignedOutEverywhere,
        &ctx.actor,
        ctx.now,
    )?;
    ctx.record(tx, Name::UserCutOff, Target::User(id.clone()), json!({}))?;
    Ok(())
}
