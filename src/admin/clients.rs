//! Clients: registrations and their secrets.

use std::time::Duration;

use serde_json::{Value, json};

use super::context::{AdminError, Context};
use crate::accounts::FieldErrors;
use crate::audit::{Name, RevocationReason, Target};
use crate::config::{Config, ConfigError, Keys};
use crate::db::Transaction;
use crate::id::{ClientId, UserId};
use crate::keys::Alg;
use crate::keys::client_key_set::AssertionAlg;
use crate::keys::ring::check_offered;
use crate::oauth::client::{Client, ClientSecret, check_id};
use crate::oauth::redirect_uri::Localhost;
use crate::oauth::request::scope::IDENTITY;
use crate::oauth::resource::Resource;
use crate::secret::Secret;
use crate::time::Timestamp;

/// Rules of the server configuration for registrations.
#[derive(Clone, Debug)]
pub struct Rules {
    localhost: Localhost,
    keys: Keys,
}

impl Rules {
    /// Returns the rules of a configuration.
    ///
    /// # Errors
    /// [`ConfigError`]: the issuer is not set.
    pub fn of(config: &Config) -> Result<Self, ConfigError> {
        Ok(Self {
            // A server for development: only a loopback issuer can be http.
            localhost: match config.issuer()?.is_https() {
                true => Localhost::Forbidden,
                false => Localhost::Allowed,
            },
            keys: config.keys.clone(),
        })
    }

    /// Checks a registration against these rules, except for the resources that it names.
    ///
    /// # Errors
    /// The invalid fields.
    pub fn check(&self, client: &Client) -> Result<(), FieldErrors> {
        let checked = client.check(self.localhost);
        let mut errors = checked.err().unwrap_or_else(FieldErrors::none);
        for (field, alg) in [
            ("id_token_signed_response_alg", Some(client.id_token_alg)),
            ("userinfo_signed_response_alg", client.userinfo_alg),
        ] {
            if let Some(Err(why)) = alg.map(|alg| check_offered(&self.keys, alg)) {
                errors.add(field, why);
            }
        }
        errors.into_result()
    }
}

/// A client that was created, with its first secret if it is confidential. The secret is shown once and never
/// stored.
#[derive(Debug)]
pub struct CreatedClient {
    /// The registration.
    pub client: Client,
    /// The first secret.
    pub secret: Option<Secret>,
}

/// Registers a client. If its id is empty, one is generated. A client that authenticates with a secret gets
/// `secret`, or a generated one.
///
/// # Errors
/// [`AdminError::Invalid`]; [`AdminError::Exists`] for an id that was ever assigned.
pub fn create(
    tx: &mut Transaction<'_>,
    ctx: &Context,
    rules: &Rules,
    client: Client,
    secret: Option<Secret>,
) -> Result<CreatedClient, AdminError> {
    let mut client = client;
    let mut errors = rules.check(&client).err().unwrap_or_else(FieldErrors::none);
    if client.id.as_str().is_empty() {
        client.id = ClientId::new(&ctx.entropy, ctx.now);
    } else if let Err(why) = check_id(client.id.as_str()) {
        errors.add("client_id", why);
    } else if tx.find_user(&UserId::from(client.id.as_str()))?.is_some() {
        errors.add("client_id", "is the id (`sub`) of a user");
    }
    check_names(&client, &tx.list_resources()?, &mut errors);
    errors.into_result()?;
    let secret = client
        .auth_method
        .uses_secret()
        .then(|| secret.unwrap_or_else(|| Secret::client_secret(&ctx.entropy)));
    let kept = secret
        .iter()
        .map(|secret| ClientSecret::keep(secret, "first", &ctx.entropy, ctx.now));
    client.secrets = kept.collect();
    tx.put_client(&client)
        .map_err(AdminError::taken("client", &client.id))?;
    let target = Target::Client(client.id.clone());
    ctx.record(tx, Name::ClientCreated, target, view(&client))?;
    Ok(CreatedClient { client, secret })
}

/// Changes a registration from `before`, as the caller read it, to `after`.
///
/// # Errors
/// [`AdminError::Invalid`], [`AdminError::NotFound`]; [`AdminError::Conflict`] if it is no longer `before`.
pub fn update(
    tx: &mut Transaction<'_>,
    ctx: &Context,
    rules: &Rules,
    before: &Client,
    after: &Client,
) -> Result<(), AdminError> {
    let present = tx.find_registered_to_change(&after.id)?;
    let present = present.ok_or_else(|| AdminError::not_found("client", &after.id))?;
    if view(&present) != view(before) {
        return Err(AdminError::changed("client", &after.id));
    }
    let mut errors = rules.check(after).err().unwrap_or_else(FieldErrors::none);
    // A name that is unchanged may have lost its meaning since; that must not prevent other changes.
    let is_same = before.resources == after.resources
        && before.serves == after.serves
        && before.scopes == after.scopes;
    if !is_same {
        check_names(after, &tx.list_resources()?, &mut errors);
    }
    errors.into_result()?;
    tx.update_client(after)?;
    let detail = json!({ "before": view(before), "after": view(after) });
    let target = Target::Client(after.id.clone());
    ctx.record(tx, Name::ClientUpdated, target, detail)?;
    Ok(())
}

/// A new secret of a client.
#[derive(Clone, Debug)]
pub struct NewSecret {
    /// Its label, such as the deployment that uses it.
    pub label: String,
    /// When it expires; `None`: never.
    pub expires_at: Option<Timestamp>,
    /// What happens to older secrets.
    pub old: OldSecrets,
}

/// What happens to the older secrets of a client that gets a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldSecrets {
    /// They stay valid.
    Keep,
    /// They expire after this time.
    ExpireAfter(Duration),
    /// An attacker may know one: they expire at once, and every code, grant and token of the client is
    /// revoked.
    Compromised,
}

/// Generates a secret for a confidential client. The secret is returned and never stored.
///
/// # Errors
/// [`AdminError::NotFound`]; [`AdminError::Conflict`] for a public client.
pub fn rotate_secret(
    tx: &mut Transaction<'_>,
    ctx: &Context,
    id: &ClientId,
    new: &NewSecret,
) -> Result<Secret, AdminError> {
    let client = find(tx, id)?;
    if !client.auth_method.uses_secret() {
        let why = match client.is_confidential() {
            true => format!("`{id}` authenticates with its own key and has no secret"),
            false => format!("`{id}` is a public client, which has no secret"),
        };
        return Err(AdminError::Conflict(why));
    }
    let secret = Secret::client_secret(&ctx.entropy);
    let kept = ClientSecret {
        expires_at: new.expires_at,
        ..ClientSecret::keep(&secret, &new.label, &ctx.entropy, ctx.now)
    };
    tx.put_client_secret(id, &kept)?;
    match new.old {
        OldSecrets::Keep => {}
        OldSecrets::ExpireAfter(time) => {
            tx.expire_client_secrets(id, &kept.id, ctx.now + time)?;
        }
        OldSecrets::Compromised => {
            tx.expire_client_secrets(id, &kept.id, ctx.now)?;
            tx.revoke_all_for_client(
                id,
                &RevocationReason::SecretCompromised,
                &ctx.actor,
                ctx.now,
            )?;
        }
    }
    let compromised = new.old == OldSecrets::Compromised;
    let reason = compromised.then(|| "compromised".to_owned());
    let detail = json!({ "secret": kept.id, "label": kept.label });
    let ctx = Context {
        reason,
        ..ctx.clone()
    };
    let target = Target::Client(id.clone());
    ctx.record(tx, Name::ClientSecretCreated, target, detail)?;
    Ok(secret)
}

/// Disables a client and revokes everything that it holds.
///
/// # Errors
/// [`AdminError::NotFound`]; [`AdminError::Unchanged`] if it is disabled already.
pub fn disable(tx: &mut Transaction<'_>, ctx: &Context, id: &ClientId) -> Result<(), AdminError> {
    find(tx, id)?;
    if !tx.disable_client(id, &ctx.actor, ctx.now)? {
        return Err(AdminError::Unchanged(id.to_string()));
    }
    ctx.record(
        tx,
        Name::ClientDisabled,
        Target::Client(id.clone()),
        json!({}),
    )?;
    Ok(())
}

/// Enables a client. What it held before stays revoked.
///
/// # Errors
/// [`AdminError::NotFound`]; [`AdminError::Unchanged`] if it is enabled.
pub fn enable(tx: &mut Transaction<'_>, ctx: &Context, id: &ClientId) -> Result<(), AdminError> {
    find(tx, id)?;
    if !tx.enable_client(id)? {
        return Err(AdminError::Unchanged(id.to_string()));
    }
    ctx.record(
        tx,
        Name::ClientEnabled,
        Target::Client(id.clone()),
        json!({}),
    )?;
    Ok(())
}

/// Deletes a client and revokes everything that it holds. Its id is never assigned again.
///
/// # Errors
/// [`AdminError::NotFound`].
pub fn delete(tx: &mut Transaction<'_>, ctx: &Context, id: &ClientId) -> Result<(), AdminError> {
    if !tx.delete_client(id, &ctx.actor, ctx.now)? {
        return Err(AdminError::not_found("client", id));
    }
    ctx.record(
        tx,
        Name::ClientDeleted,
        Target::Client(id.clone()),
        json!({}),
    )?;
    Ok(())
}

fn find(tx: &mut Transaction<'_>, id: &ClientId) -> Result<Client, AdminError> {
    tx.find_registered(id)?
        .ok_or_else(|| AdminError::not_found("client", id))
}

/// Checks that every API that a client names is registered, and that each of its scopes belongs to one that
/// it may request, because tokens contain no other scopes (RFC 8707 §2.2).
pub fn check_names(client: &Client, registered: &[Resource], errors: &mut FieldErrors) {
    let is_known = |audience: &String| registered.iter().any(|api| api.audience == *audience);
    for (field, named) in [("resources", &client.resources), ("serves", &client.serves)] {
        for odd in named.iter().filter(|audience| !is_known(audience)) {
            let why =
                format!("the resource `{odd}` is not registered; see `portcullis resource list`");
            errors.add(field, why);
        }
    }
    let (asked, others): (Vec<&Resource>, Vec<&Resource>) =
        (registered.iter()).partition(|api| client.resources.contains(&api.audience));
    let offers = |apis: &[&Resource], scope| apis.iter().any(|api| api.scopes.contains(scope));
    let scopes = client.scopes.iter();
    for odd in scopes.filter(|scope| !IDENTITY.contains(scope) && !offers(&asked, scope)) {
        errors.add("scope", foreign_scope(odd, &asked, &others));
    }
}

/// Returns why a scope cannot be granted, with a suggestion for a misspelled scope.
fn foreign_scope(scope: &str, asked: &[&Resource], others: &[&Resource]) -> String {
    if let Some(owner) = others.iter().find(|api| api.scopes.contains(scope)) {
        return format!(
            "`{scope}` belongs to `{}`, which is not among the client's resources",
            owner.audience
        );
    }
    let offered = asked.iter().flat_map(|api| api.scopes.iter());
    let alike = offered
        .chain(IDENTITY)
        .map(|known| (strsim::levenshtein(known, scope), known));
    let meant = alike
        .filter(|(letters, _)| letters * 3 <= scope.len())
        .min();
    let hint = meant.map_or_else(String::new, |(_, known)| {
        format!("; did you mean `{known}`?")
    });
    format!("`{scope}` belongs to none of the client's resources{hint}")
}

/// Returns a registration as commands show it and audit events store it, with the names of RFC 7591 §2 where it has
/// one.
pub fn view(client: &Client) -> Value {
    json!({
        "client_id": client.id.as_str(),
        "client_name": client.name,
        "token_endpoint_auth_method": client.auth_method.as_str(),
        "token_endpoint_auth_signing_alg": client.assertion_alg.map(AssertionAlg::name),
        "assertion_audience": client.assertion_audience.as_str(),
        "jwks": client.jwks.as_ref().and_then(|jwks| serde_json::from_str::<Value>(jwks.as_str()).ok()),
        "redirect_uris": client.redirect_uris,
        "grant_types": client.grant_types.iter().map(|grant| grant.as_str()).collect::<Vec<_>>(),
        "scope": client.scopes.to_string(),
        "resources": client.resources,
        "cors_origins": client.cors_origins,
        "post_logout_redirect_uris": client.post_logout_redirect_uris,
        "backchannel_logout_uri": client.backchannel_logout_uri,
        "backchannel_logout_session_required": client.backchannel_logout_session_required,
        "serves": client.serves,
        "id_token_signed_response_alg": client.id_token_alg.name(),
        "userinfo_signed_response_alg": client.userinfo_alg.map(Alg::name),
        "consent": client.consent.as_str(),
        "require_pkce": client.require_pkce,
        "allow_localhost_redirect": client.allow_localhost_redirect,
        "allow_networks": client.allow_networks,
        "deny_networks": client.deny_networks,
        "client_uri": client.client_uri,
        "policy_uri": client.policy_uri,
        "tos_uri": client.tos_uri,
        "disabled": client.disabled_at.is_some(),
        "created_at": client.created_at.to_string(),
    })
}
