//! The fields of a client's registration: options of `client create` and `client update`, and entries in a file
//! for `apply`. Files use the names of RFC 7591 §2 where it has one.

use std::sync::Arc;

use clap::ValueEnum;
use serde::Deserialize;

use crate::cli::UsageError;
use crate::config::Network;
use crate::id::ClientId;
use crate::keys::Alg;
use crate::keys::client_key_set::{AssertionAlg, ClientKeySet};
use crate::oauth::client::{
    AssertionAudience, AuthMethod, Client, ConsentPolicy, GrantType, check_id,
};
use crate::oauth::request::scope::Scope;
use crate::time::Timestamp;

/// The fields to set. Absent fields keep their value. A list is replaced completely. On the command line, one
/// empty value empties a list, and an empty text empties a text.
#[derive(clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fields {
    /// The client id. Set in files only.
    #[arg(skip)]
    pub client_id: String,
    /// Whether the client is disabled. Set in files only.
    #[arg(skip)]
    pub disabled: Option<bool>,
    /// Name on the consent page.
    #[arg(long)]
    #[serde(rename = "client_name")]
    name: Option<String>,
    /// Redirect URI; repeatable, compared byte for byte.
    #[arg(long = "redirect-uri", value_name = "URI")]
    redirect_uris: Option<Vec<String>>,
    /// Authentication method; client_secret accepts the secret by HTTP Basic or in the form, none means a public
    /// client.
    #[arg(long, value_enum)]
    #[serde(rename = "token_endpoint_auth_method")]
    auth_method: Option<Method>,
    /// File with its public keys, a JSON Web Key Set, for private_key_jwt.
    #[arg(long, value_name = "FILE", value_parser = read_key_set)]
    jwks: Option<KeySet>,
    /// Signature algorithm of its assertions: ES256, RS256, PS256 or EdDSA; by default any that its keys permit.
    #[arg(long, value_name = "ALG")]
    #[serde(rename = "token_endpoint_auth_signing_alg")]
    assertion_alg: Option<String>,
    /// Audience of its assertions.
    #[arg(long, value_enum)]
    assertion_audience: Option<Audience>,
    /// Scopes that it may request, separated by spaces.
    #[arg(long)]
    scope: Option<String>,
    /// Grant type that it may use; repeatable.
    #[arg(long = "grant-type", value_name = "GRANT")]
    grant_types: Option<Vec<String>>,
    /// Audience of an API that it may request tokens for; repeatable, the first is the default.
    #[arg(long = "resource", value_name = "AUDIENCE")]
    resources: Option<Vec<String>>,
    /// Audience of an API that it is the resource server for, whose tokens it may introspect; repeatable.
    #[arg(long = "serves", value_name = "AUDIENCE")]
    serves: Option<Vec<String>>,
    /// Origin whose scripts may call the token endpoint; repeatable.
    #[arg(long = "cors-origin", value_name = "ORIGIN")]
    cors_origins: Option<Vec<String>>,
    /// URI to which a browser may be redirected after logout; repeatable.
    #[arg(long = "post-logout-redirect-uri", value_name = "URI")]
    post_logout_redirect_uris: Option<Vec<String>>,
    /// URL that is told when a session has ended (OpenID Connect Back-Channel Logout).
    #[arg(long, value_name = "URI")]
    backchannel_logout_uri: Option<String>,
    /// Whether the client needs the session id in these notifications, which always contain it.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    backchannel_logout_session_required: Option<bool>,
    /// Signature algorithm of its ID tokens: RS256 or ES256.
    #[arg(long, value_name = "ALG")]
    #[serde(rename = "id_token_signed_response_alg")]
    id_token_alg: Option<String>,
    /// Signature algorithm of its userinfo responses: RS256, ES256, or none for plain JSON.
    #[arg(long, value_name = "ALG")]
    #[serde(rename = "userinfo_signed_response_alg")]
    userinfo_alg: Option<String>,
    /// When users are asked for consent.
    #[arg(long, value_enum)]
    consent: Option<Consent>,
    /// Whether PKCE is required; false is allowed for confidential clients whose library does not support it.
    #[arg(long, value_name = "BOOL")]
    require_pkce: Option<bool>,
    /// Whether http://localhost redirect URIs are accepted.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    allow_localhost_redirect: Option<bool>,
    /// Network from which it may authenticate, such as 10.0.0.0/8; repeatable.
    #[arg(long = "allow-network", value_name = "CIDR")]
    allow_networks: Option<Vec<String>>,
    /// Network from which it may not authenticate, even if it is allowed otherwise; repeatable.
    #[arg(long = "deny-network", value_name = "CIDR")]
    deny_networks: Option<Vec<String>>,
    /// Home page (https).
    #[arg(long)]
    client_uri: Option<String>,
    /// Privacy policy (https).
    #[arg(long)]
    policy_uri: Option<String>,
    /// Terms of service (https).
    #[arg(long)]
    tos_uri: Option<String>,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
enum Method {
    ClientSecret,
    ClientSecretBasic,
    ClientSecretPost,
    PrivateKeyJwt,
    None,
}

/// The text of a JSON Web Key Set. In files it is an object with the member `keys`.
#[derive(Clone, Deserialize)]
#[serde(from = "serde_json::Value")]
struct KeySet(String);

impl From<serde_json::Value> for KeySet {
    fn from(value: serde_json::Value) -> Self {
        Self(value.to_string())
    }
}

/// Reads the file of `--jwks`. An empty name removes the keys.
fn read_key_set(name: &str) -> Result<KeySet, String> {
    if name.is_empty() {
        return Ok(KeySet(String::new()));
    }
    let read = std::fs::read_to_string(name);
    read.map(KeySet)
        .map_err(|error| format!("cannot read {name}: {error}"))
}

#[derive(Clone, Copy, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
enum Audience {
    /// The issuer.
    Issuer,
    /// The issuer or the URL of the token endpoint, for libraries that use the latter.
    IssuerOrTokenEndpoint,
}

#[derive(Clone, Copy, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
enum Consent {
    /// Once, and again if the client requests more.
    Remember,
    /// On each authorization request.
    Always,
    /// Never. For applications of the operator.
    Skip,
}

impl Fields {
    /// Creates a client, whose id is generated later if it is `None`. Its ID tokens are signed with the first of
    /// `algorithms` unless the fields name another.
    ///
    /// # Errors
    /// [`UsageError`] for an invalid value.
    pub fn create(
        &self,
        id: Option<ClientId>,
        public: bool,
        algorithms: &[Alg],
        now: Timestamp,
    ) -> Result<Client, UsageError> {
        if let Some(id) = &id {
            check_id(id.as_str()).map_err(|why| UsageError::new("client_id", why))?;
        }
        let public = public || self.auth_method == Some(Method::None);
        let blank = Client {
            auth_method: match public {
                true => AuthMethod::None,
                false => AuthMethod::Secret,
            },
            scopes: Scope::parse("openid profile email").unwrap_or_default(),
            id_token_alg: algorithms.first().copied().unwrap_or(Alg::ES256),
            ..Client::new(id.unwrap_or_else(|| ClientId::from("")), now)
        };
        self.update(blank)
    }

    /// Applies the fields to a client.
    ///
    /// # Errors
    /// [`UsageError`] for an invalid value.
    pub fn update(&self, mut client: Client) -> Result<Client, UsageError> {
        for (list, given) in [
            (&mut client.redirect_uris, &self.redirect_uris),
            (&mut client.resources, &self.resources),
            (&mut client.serves, &self.serves),
            (&mut client.cors_origins, &self.cors_origins),
            (
                &mut client.post_logout_redirect_uris,
                &self.post_logout_redirect_uris,
            ),
        ] {
            if let Some(given) = given {
                *list = filled(given).map(str::to_owned).collect();
            }
        }
        if let Some(name) = &self.name {
            client.name.clone_from(name);
        }
        if let Some(method) = self.auth_method {
            client.auth_method = method.of(&client)?;
        }
        if let Some(KeySet(jwks)) = &self.jwks {
            client.jwks = match jwks.as_str() {
                "" => None,
                text => Some(Arc::new(
                    ClientKeySet::parse(text).map_err(|why| UsageError::new("jwks", why))?,
                )),
            };
        }
        if let Some(name) = &self.assertion_alg {
            let why = || format!("`{name}` is not one of ES256, RS256, PS256 and EdDSA");
            client.assertion_alg = match name.as_str() {
                "" => None,
                name => Some(
                    AssertionAlg::from_name(name)
                        .ok_or_else(|| UsageError::new("token_endpoint_auth_signing_alg", why()))?,
                ),
            };
        }
        if let Some(audience) = self.assertion_audience {
            client.assertion_audience = match audience {
                Audience::Issuer => AssertionAudience::Issuer,
                Audience::IssuerOrTokenEndpoint => AssertionAudience::IssuerOrTokenEndpoint,
            };
        }
        if let Some(scope) = &self.scope {
            client.scopes = Scope::parse(scope)
                .map_err(|_| UsageError::new("scope", format!("invalid scope `{scope}`")))?;
        }
        if let Some(given) = &self.grant_types {
            client.grant_types = filled(given).map(grant).collect::<Result<_, _>>()?;
        }
        if let Some(name) = &self.id_token_alg {
            client.id_token_alg = alg("id_token_signed_response_alg", name)?;
        }
        if let Some(name) = &self.userinfo_alg {
            client.userinfo_alg = match name.as_str() {
                "none" => None,
                name => Some(alg("userinfo_signed_response_alg", name)?),
            };
        }
        if let Some(consent) = self.consent {
            client.consent = match consent {
                Consent::Remember => ConsentPolicy::Remember,
                Consent::Always => ConsentPolicy::Always,
                Consent::Skip => ConsentPolicy::Skip,
            };
        }
        let session_required = self.backchannel_logout_session_required;
        client.backchannel_logout_session_required =
            session_required.unwrap_or(client.backchannel_logout_session_required);
        client.require_pkce = self.require_pkce.unwrap_or(client.require_pkce);
        let localhost = self.allow_localhost_redirect;
        client.allow_localhost_redirect = localhost.unwrap_or(client.allow_localhost_redirect);
        if let Some(given) = &self.allow_networks {
            client.allow_networks = networks("allow_networks", given)?;
        }
        if let Some(given) = &self.deny_networks {
            client.deny_networks = networks("deny_networks", given)?;
        }
        for (field, given) in [
            (
                &mut client.backchannel_logout_uri,
                &self.backchannel_logout_uri,
            ),
            (&mut client.client_uri, &self.client_uri),
            (&mut client.policy_uri, &self.policy_uri),
            (&mut client.tos_uri, &self.tos_uri),
        ] {
            if let Some(given) = given {
                *field = Some(given.clone()).filter(|uri| !uri.is_empty());
            }
        }
        Ok(client)
    }
}

impl Method {
    /// Returns the new authentication method. A public client stays public, because the holders of its tokens have
    /// no secret. A confidential client stays confidential, because its grants rely on authentication.
    fn of(self, client: &Client) -> Result<AuthMethod, UsageError> {
        let refuse = |why: &str| Err(UsageError::new("token_endpoint_auth_method", why));
        match (self, client.is_confidential()) {
            (Self::None, false) => Ok(AuthMethod::None),
            (Self::None, true) => {
                refuse("a confidential client cannot become a public one; register another")
            }
            (_, false) => refuse("a public client has no authentication method"),
            (Self::ClientSecret, true) => Ok(AuthMethod::Secret),
            (Self::ClientSecretBasic, true) => Ok(AuthMethod::Basic),
            (Self::ClientSecretPost, true) => Ok(AuthMethod::Post),
            (Self::PrivateKeyJwt, true) => Ok(AuthMethod::PrivateKeyJwt),
        }
    }
}

fn filled(given: &[String]) -> impl Iterator<Item = &str> {
    given
        .iter()
        .map(String::as_str)
        .filter(|value| !value.is_empty())
}

fn grant(name: &str) -> Result<GrantType, UsageError> {
    let why = || format!("unsupported grant type `{name}`");
    GrantType::parse(name).ok_or_else(|| UsageError::new("grant_types", why()))
}

fn alg(field: &'static str, name: &str) -> Result<Alg, UsageError> {
    let why = || format!("`{name}` is neither RS256 nor ES256");
    Alg::from_name(name).ok_or_else(|| UsageError::new(field, why()))
}

fn networks(field: &'static str, given: &[String]) -> Result<Vec<Network>, UsageError> {
    filled(given)
        .map(|text| {
            text.parse()
                .map_err(|why: String| UsageError::new(field, why))
        })
        .collect()
}
