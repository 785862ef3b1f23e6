//! Resources: registered APIs, and the descriptions of scopes.

use serde_json::{Value, json};

use super::context::{AdminError, Context};
use crate::accounts::FieldErrors;
use crate::audit::{Name, Target};
use crate::config::HumanDuration;
use crate::config::Keys;
use crate::db::Transaction;
use crate::keys::ring::check_offered;
use crate::oauth::resource::{Resource, check_description};

/// Registers an API.
///
/// # Errors
/// [`AdminError::Invalid`]; [`AdminError::Exists`] for an audience that is taken.
pub fn create(
    tx: &mut Transaction<'_>,
    ctx: &Context,
    keys: &Keys,
    resource: &Resource,
) -> Result<(), AdminError> {
    validate(resource, keys)?;
    tx.put_resource(resource)
        .map_err(AdminError::taken("resource", &resource.audience))?;
    let target = Target::Resource(resource.audience.clone());
    ctx.record(tx, Name::ResourceCreated, target, view(resource))?;
    Ok(())
}

/// Changes a registration from `before`, as the caller read it, to `after`.
///
/// # Errors
/// [`AdminError::Invalid`], [`AdminError::NotFound`]; [`AdminError::Conflict`] if it is no longer `before`.
pub fn update(
    tx: &mut Transaction<'_>,
    ctx: &Context,
    keys: &Keys,
    before: &Resource,
    after: &Resource,
) -> Result<(), AdminError> {
    validate(after, keys)?;
    let present = tx.find_resource_to_change(&after.audience)?;
    let present = present.ok_or_else(|| AdminError::not_found("resource", &after.audience))?;
    if view(&present) != view(before) {
        return Err(AdminError::changed("resource", &after.audience));
    }
    tx.update_resource(after, ctx.now)?;
    let detail = json!({ "before": view(before), "after": view(after) });
    let target = Target::Resource(after.audience.clone());
    ctx.record(tx, Name::ResourceUpdated, target, detail)?;
    Ok(())
}

/// Removes a registration that no client names.
///
/// # Errors
/// [`AdminError::NotFound`]; [`AdminError::Conflict`] while a client names it.
pub fn delete(tx: &mut Transaction<'_>, ctx: &Context, audience: &str) -> Result<(), AdminError> {
    let before = find(tx, audience)?;
    let clients = tx.list_clients()?;
    if let Some(client) = clients.iter().find(|client| client.names(audience)) {
        return Err(AdminError::Conflict(format!(
            "the client `{}` still names this resource",
            client.id
        )));
    }
    tx.delete_resource(audience)?;
    let target = Target::Resource(audience.to_owned());
    ctx.record(tx, Name::ResourceDeleted, target, view(&before))?;
    Ok(())
}

/// Sets the description of a scope on the consent page; `None` removes it.
///
/// # Errors
/// [`AdminError::Invalid`].
pub fn describe_scope(
    tx: &mut Transaction<'_>,
    ctx: &Context,
    scope: &str,
    text: Option<&str>,
) -> Result<(), AdminError> {
    let mut errors = FieldErrors::none();
    if let Some(Err(why)) = text.map(check_description) {
        errors.add("scope", format!("the text of `{scope}` {why}"));
    }
    errors.into_result()?;
    let before = tx.list_scope_descriptions()?.remove(scope);
    match text {
        Some(text) => tx.put_scope_description(scope, text)?,
        None => drop(tx.delete_scope_description(scope)?),
    }
    let detail = json!({
        "before": { "description": before }, "after": { "description": text },
    });
    let target = Target::Scope(scope.to_owned());
    ctx.record(tx, Name::ScopeDescribed, target, detail)?;
    Ok(())
}

/// Checks a registration against the configured keys.
///
/// # Errors
/// The invalid fields.
pub fn validate(resource: &Resource, keys: &Keys) -> Result<(), FieldErrors> {
    let mut errors = resource.check().err().unwrap_or_else(FieldErrors::none);
    if let Err(why) = check_offered(keys, resource.alg) {
        errors.add("alg", why);
    }
    errors.into_result()
}

fn find(tx: &mut Transaction<'_>, audience: &str) -> Result<Resource, AdminError> {
    let found = tx.find_resources(&[audience.to_owned()])?;
    found
        .into_iter()
        .next()
        .ok_or_else(|| AdminError::not_found("resource", audience))
}

/// Returns a registration as commands show it and audit events store it.
pub fn view(resource: &Resource) -> Value {
    json!({
        "audience": resource.audience,
        "name": resource.name,
        "scope": resource.scopes.to_string(),
        "alg": resource.alg.name(),
        "access_ttl": resource.access_ttl.map(|ttl| HumanDuration(ttl).to_string()),
        "max_age": max_age(resource),
    })
}

/// The text for an API without a limit of staleness.
pub const NO_LIMIT: &str = "none";

fn max_age(resource: &Resource) -> String {
    resource.max_age.as_secs().map_or_else(
        || NO_LIMIT.to_owned(),
        |secs| HumanDuration::secs(secs).to_string(),
    )
}
