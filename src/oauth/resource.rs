//! Resource servers and resource indicators: RFC 8707.

use portcullis_verifier::MaxAge;

use super::client::Client;
use super::error::{Detail, Error};
use super::request::scope::{IDENTITY, Scope};
use crate::accounts::{FieldErrors, name};
use crate::config::limits::{
    CLIENT_NAME_CHARS, DESCRIPTION_CHARS, REDIRECT_URI_BYTES, RESOURCE_ACCESS_CAP, RESOURCES,
};
use crate::keys::Alg;
use crate::time::Timestamp;

/// A registered API.
#[derive(Clone, Debug)]
pub struct Resource {
    /// Row id.
    pub id: String,
    /// Its identifier: the `aud` of its tokens.
    pub audience: String,
    /// What people see.
    pub name: String,
    /// What can be asked of it.
    pub scopes: Scope,
    /// Lifetime of its access tokens, if not the server's.
    pub access_ttl: Option<std::time::Duration>,
    /// Signature algorithm of its access tokens.
    pub alg: Alg,
    /// The oldest news of revocations on which its tokens may be accepted.
    pub max_age: MaxAge,
    /// When it was registered.
    pub created_at: Timestamp,
}

const REJECTED: Detail = Detail::new("authz.rejected", "resource");

impl Resource {
    /// Checks a registration: among others that the identifier is an absolute URI without a fragment (RFC
    /// 8707 §2).
    ///
    /// # Errors
    /// All fields that are not accepted.
    pub fn check(&self) -> Result<(), FieldErrors> {
        let mut errors = FieldErrors::none();
        if !is_identifier(&self.audience) {
            let why = format!(
                "`{}` is not an absolute URI without a fragment, of at most {REDIRECT_URI_BYTES} bytes",
                self.audience
            );
            errors.add("audience", why);
        }
        if let Err(why) = name::check(&self.name, CLIENT_NAME_CHARS) {
            errors.add("name", why);
        }
        if let Some(taken) = self.scopes.iter().find(|scope| IDENTITY.contains(scope)) {
            let why = format!("`{taken}` belongs to the identity provider itself");
            errors.add("scope", why);
        }
        let is_within = |secs: u64| secs > 0 && secs <= RESOURCE_ACCESS_CAP.as_secs();
        if self
            .access_ttl
            .is_some_and(|ttl| ttl > RESOURCE_ACCESS_CAP || ttl.is_zero())
        {
            let why = "expected more than 0s and at most 60m";
            errors.add("access_ttl", why);
        }
        if self.max_age.as_secs().is_some_and(|secs| !is_within(secs)) {
            let why = "expected more than 0s and at most 60m, or `none`";
            errors.add("max_age", why);
        }
        errors.into_result()
    }

    /// The scopes of a token for this resource: its own, and those that speak about the person.
    pub fn narrow(&self, scope: &Scope) -> Scope {
        scope.retain(|token| IDENTITY.contains(&token) || self.scopes.contains(token))
    }
}

fn is_identifier(text: &str) -> bool {
    text.len() <= REDIRECT_URI_BYTES && url::Url::parse(text).is_ok() && !text.contains('#')
}

/// Checks what the consent page says about a scope.
///
/// # Errors
/// The rest of a sentence that begins with the field.
pub fn check_description(text: &str) -> Result<(), String> {
    name::check(text, DESCRIPTION_CHARS)
}

/// The APIs that a request is about: those it names, else those of the client whose scopes it asks
/// for, else the client's default. `known` are the registered resources of the client, in order.
///
/// # Errors
/// `invalid_target` (§2); `invalid_scope` when a scope belongs to none of them or is not the client's.
pub fn targets(
    client: &Client,
    known: &[Resource],
    named: &[&str],
    scope: &Scope,
) -> Result<Vec<String>, Error> {
    if named.len() > RESOURCES {
        return Err(Error::invalid_target(REJECTED));
    }
    let mut chosen: Vec<&Resource> = Vec::new();
    for name in named {
        let resource = known
            .iter()
            .find(|r| r.audience == *name && is_identifier(name));
        let resource = resource.ok_or_else(|| Error::invalid_target(REJECTED))?;
        if !chosen.iter().any(|r| r.audience == resource.audience) {
            chosen.push(resource);
        }
    }
    let asked = scope.retain(|token| !IDENTITY.contains(&token));
    if named.is_empty() {
        chosen = known
            .iter()
            .filter(|r| asked.iter().any(|token| r.scopes.contains(token)))
            .collect();
        if chosen.is_empty() {
            chosen.extend(known.first());
        }
    }
    let offered = |token: &str| chosen.iter().any(|r| r.scopes.contains(token));
    if !asked.iter().all(offered) || !scope.is_within(&client.scopes) {
        return Err(Error::invalid_scope(Detail::new("authz.rejected", "scope")));
    }
    Ok(chosen.into_iter().map(|r| r.audience.clone()).collect())
}
