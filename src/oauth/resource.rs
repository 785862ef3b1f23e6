//! Resource servers and resource indicators: RFC 8707.

use portcullis_verifier::MaxAge;

use super::error::Error;
use super::macros::details;
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
    /// The identifier, which is `aud` of its tokens.
    pub audience: String,
    /// The name that users see.
    pub name: String,
    /// Its scopes.
    pub scopes: Scope,
    /// The lifetime of its access tokens, if it differs from the server's.
    pub access_ttl: Option<std::time::Duration>,
    /// The signature algorithm of its access tokens.
    pub alg: Alg,
    /// The maximum staleness of the revocation data with which its tokens may be accepted.
    pub max_age: MaxAge,
    /// When it was registered.
    pub created_at: Timestamp,
}

details! {
    enum Rejection {
        Resource => Detail::new("authz.rejected", "resource"),
        Scope => Detail::new("authz.rejected", "scope"),
    }
}

impl Resource {
    /// Checks a registration. Among others, the identifier must be an absolute URI without a fragment (RFC 8707
    /// §2).
    ///
    /// # Errors
    /// All invalid fields.
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

    /// Returns the part of `scope` that a token for this resource contains: scopes of the resource, and those that
    /// describe the user.
    pub fn narrow(&self, scope: &Scope) -> Scope {
        scope.retain(|token| IDENTITY.contains(&token) || self.scopes.contains(token))
    }
}

fn is_identifier(text: &str) -> bool {
    text.len() <= REDIRECT_URI_BYTES && url::Url::parse(text).is_ok() && !text.contains('#')
}

/// Checks the description of a scope for the consent page.
///
/// # Errors
/// The rest of a sentence that starts with the name of the field.
pub fn check_description(text: &str) -> Result<(), String> {
    name::check(text, DESCRIPTION_CHARS)
}

/// The APIs of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    apis: Vec<(String, Scope)>,
    /// Whether the request names them. Otherwise they follow from its scope.
    are_named: bool,
}

impl Targets {
    /// Returns the audiences of a grant of `scope`: the APIs that the request named, or those to which a granted scope
    /// belongs. Without any, tokens are for this server alone: an API must not accept a token of a mere login (RFC 9700
    /// §2.3).
    pub fn audiences(&self, scope: &Scope) -> Vec<String> {
        let is_granted = |api: &Scope| scope.iter().any(|token| api.contains(token));
        self.apis
            .iter()
            .filter(|(_, scopes)| self.are_named || is_granted(scopes))
            .map(|(audience, _)| audience.clone())
            .collect()
    }

    /// Returns the first API.
    pub fn first(&self) -> Option<&str> {
        self.apis.first().map(|(audience, _)| audience.as_str())
    }
}

/// Returns the APIs of a request: the requested resources, or else the client's resources whose scopes are requested.
/// `registered` are the resources of the client, in order.
///
/// # Errors
/// `invalid_target` (§2); `invalid_scope` if a scope belongs to none of the resources, or if the client is not
/// registered for it.
pub fn targets(
    client_scopes: &Scope,
    registered: &[Resource],
    requested: &[&str],
    scope: &Scope,
) -> Result<Targets, Error> {
    let audiences = || {
        let known: Vec<&str> = registered.iter().map(|r| r.audience.as_str()).collect();
        known.join(" ")
    };
    if requested.len() > RESOURCES {
        return Err(Error::invalid_target(Rejection::Resource));
    }
    let mut chosen: Vec<&Resource> = Vec::new();
    for name in requested {
        let resource = registered
            .iter()
            .find(|r| r.audience == *name && is_identifier(name));
        let resource = resource.ok_or_else(|| {
            Error::invalid_target(Rejection::Resource).comparing(*name, audiences())
        })?;
        if !chosen.iter().any(|r| r.audience == resource.audience) {
            chosen.push(resource);
        }
    }
    let api_scope = scope.retain(|token| !IDENTITY.contains(&token));
    if requested.is_empty() {
        chosen = registered
            .iter()
            .filter(|r| api_scope.iter().any(|token| r.scopes.contains(token)))
            .collect();
    }
    let offered = |token: &str| chosen.iter().any(|r| r.scopes.contains(token));
    let is_allowed = |token: &str| {
        client_scopes.contains(token) && (IDENTITY.contains(&token) || offered(token))
    };
    let refused = scope.retain(|token| !is_allowed(token));
    if !refused.is_empty() {
        let error = Error::invalid_scope(Rejection::Scope);
        return Err(error.comparing(refused.to_string(), client_scopes.to_string()));
    }
    let apis = chosen
        .into_iter()
        .map(|r| (r.audience.clone(), r.scopes.clone()));
    Ok(Targets {
        apis: apis.collect(),
        are_named: !requested.is_empty(),
    })
}
