//! A registered client and what it may do: RFC 6749 §2, RFC 7591 §2.

use std::net::IpAddr;
use std::sync::Arc;

use portcullis_verifier::MaxAge;

use super::error::Error;
pub use super::grant::GrantType;
use super::macros::{details, names};
use super::redirect_uri::{self, ClientType, Localhost};
use super::request::scope::Scope;
use super::resource::Resource;
use crate::accounts::{FieldError, FieldErrors, name};
use crate::config::limits::{CLIENT_ID_CHARS, CLIENT_NAME_CHARS, REDIRECT_URIS};
use crate::config::{Network, is_in};
use crate::id::ClientId;
use crate::keys::Alg;
use crate::keys::client_key_set::{AssertionAlg, ClientKeySet};
use crate::secret::{Entropy, Hash, Secret, sha256};
use crate::time::Timestamp;

/// A registered client.
#[derive(Clone, Debug)]
pub struct Client {
    /// `client_id`.
    pub id: ClientId,
    /// The name that users see.
    pub name: String,
    /// The authentication method; `none` makes it a public client.
    pub auth_method: AuthMethod,
    /// Where authorization responses may be sent.
    pub redirect_uris: Vec<String>,
    /// Its public keys (RFC 7591 §2, `jwks`).
    pub jwks: Option<Arc<ClientKeySet>>,
    /// The signature algorithm of its assertions (`token_endpoint_auth_signing_alg`); `None`: any that its keys permit.
    pub assertion_alg: Option<AssertionAlg>,
    /// The audience of its assertions.
    pub assertion_audience: AssertionAudience,
    /// The grants that it may use.
    pub grant_types: Vec<GrantType>,
    /// The scopes that it may request.
    pub scopes: Scope,
    /// The audiences of the APIs for which it may request tokens; the first is the default.
    pub resources: Vec<String>,
    /// Origins whose scripts may call the token endpoint.
    pub cors_origins: Vec<String>,
    /// Where a browser may be sent after logout.
    pub post_logout_redirect_uris: Vec<String>,
    /// Where it is told that a session has ended (Back-Channel Logout §2.2).
    pub backchannel_logout_uri: Option<String>,
    /// Whether it needs the `sid` of the session (Back-Channel Logout §2.2). Logout tokens of this server always
    /// contain it.
    pub backchannel_logout_session_required: bool,
    /// The signature algorithm of its ID tokens.
    pub id_token_alg: Alg,
    /// When users are asked for consent.
    pub consent: ConsentPolicy,
    /// Whether PKCE is required.
    pub require_pkce: bool,
    /// Whether `http://localhost` redirect URIs are accepted.
    pub allow_localhost_redirect: bool,
    /// Its home page.
    pub client_uri: Option<String>,
    /// Its privacy policy.
    pub policy_uri: Option<String>,
    /// Its terms of service.
    pub tos_uri: Option<String>,
    /// The audiences of the APIs that it is the resource server for. It may introspect their tokens (RFC 7662).
    pub serves: Vec<String>,
    /// `userinfo_signed_response_alg` (OIDC Registration §2): UserInfo responses are signed if it is set.
    pub userinfo_alg: Option<Alg>,
    /// Networks from which it may authenticate; if empty, all.
    pub allow_networks: Vec<Network>,
    /// Networks from which it may not authenticate. They take precedence over `allow_networks`.
    pub deny_networks: Vec<Network>,
    /// Incremented to revoke all grants and tokens of the client.
    pub auth_epoch: i64,
    /// Set while it is disabled.
    pub disabled_at: Option<Timestamp>,
    /// Set when it is deleted. The row remains, so that its id is never assigned again.
    pub deleted_at: Option<Timestamp>,
    /// When it was registered.
    pub created_at: Timestamp,
    /// Its secrets; the oldest is first.
    pub secrets: Vec<ClientSecret>,
}

/// A client secret, of which only the hash is stored.
#[derive(Clone, Debug)]
pub struct ClientSecret {
    /// Row id.
    pub id: String,
    /// SHA-256.
    pub hash: Hash,
    /// The label that the operator chose.
    pub label: String,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it expires.
    pub expires_at: Option<Timestamp>,
    /// When it was last used, to the hour.
    pub last_used_at: Option<Timestamp>,
}

impl ClientSecret {
    /// Creates the row of a new secret.
    pub fn keep(secret: &Secret, label: &str, entropy: &Entropy, now: Timestamp) -> Self {
        Self {
            id: crate::id::uuid(entropy, now),
            hash: secret.hash(),
            label: label.to_owned(),
            created_at: now,
            expires_at: None,
            last_used_at: None,
        }
    }

    /// Returns whether the secret has not expired.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|at| now < at)
    }
}

/// A client and its APIs, read in one transaction.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The client.
    pub client: Client,
    /// Its registered resources, in the client's order.
    pub resources: Vec<Resource>,
    /// The feed epoch at that time, which becomes part of tokens.
    pub feed_epoch: i64,
    /// For a resource server: the maximum staleness of revocation data that the registrations of all its APIs
    /// permit.
    pub max_age: MaxAge,
}

/// `token_endpoint_auth_method` (RFC 7591 §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthMethod {
    /// The client secret in an HTTP Basic header.
    Basic,
    /// The client secret in the form.
    Post,
    /// The client secret by either of both ways. Libraries that try one way after the other then show the error of
    /// the first request, and others that use both ways work.
    Secret,
    /// An assertion that the client signs (RFC 7523).
    PrivateKeyJwt,
    /// No authentication: a public client.
    None,
}

/// The audience of client assertions (RFC 7523 §3, policy §10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssertionAudience {
    /// The issuer.
    Issuer,
    /// The issuer or the URL of the token endpoint, for libraries that implement OpenID Connect Core §9 literally.
    IssuerOrTokenEndpoint,
}

/// When users are asked for consent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsentPolicy {
    /// Once, and again if a request exceeds the remembered consent.
    Remember,
    /// For each request.
    Always,
    /// Never, for applications of the operator.
    Skip,
}

names!(AuthMethod: Basic "client_secret_basic", Post "client_secret_post", Secret "client_secret", PrivateKeyJwt "private_key_jwt", None "none");
names!(AssertionAudience: Issuer "issuer", IssuerOrTokenEndpoint "issuer_or_token_endpoint");

impl AuthMethod {
    /// Returns whether a client that is registered for this method may authenticate by `used`.
    pub fn accepts(self, used: Self) -> bool {
        self == used || (self == Self::Secret && used.uses_secret())
    }

    /// Returns whether the client authenticates with a secret.
    pub fn uses_secret(self) -> bool {
        matches!(self, Self::Basic | Self::Post | Self::Secret)
    }
}
names!(ConsentPolicy: Remember "remember", Always "always", Skip "skip");

impl Client {
    /// Creates a confidential client with all defaults (RFC 7591 §2), without a name and redirect URIs.
    pub fn new(id: ClientId, now: Timestamp) -> Self {
        Self {
            id,
            name: String::new(),
            auth_method: AuthMethod::Basic,
            redirect_uris: Vec::new(),
            jwks: None,
            assertion_alg: None,
            assertion_audience: AssertionAudience::Issuer,
            grant_types: vec![GrantType::AuthorizationCode, GrantType::RefreshToken],
            scopes: Scope::default(),
            resources: Vec::new(),
            cors_origins: Vec::new(),
            post_logout_redirect_uris: Vec::new(),
            backchannel_logout_uri: None,
            backchannel_logout_session_required: false,
            id_token_alg: Alg::RS256,
            consent: ConsentPolicy::Remember,
            require_pkce: true,
            allow_localhost_redirect: false,
            client_uri: None,
            policy_uri: None,
            tos_uri: None,
            serves: Vec::new(),
            userinfo_alg: None,
            allow_networks: Vec::new(),
            deny_networks: Vec::new(),
            auth_epoch: 1,
            disabled_at: None,
            deleted_at: None,
            created_at: now,
            secrets: Vec::new(),
        }
    }

    /// Returns whether it can keep a secret.
    pub fn is_confidential(&self) -> bool {
        self.auth_method != AuthMethod::None
    }

    /// Returns whether it may use the grant.
    pub fn may_use(&self, grant: GrantType) -> bool {
        self.grant_types.contains(&grant)
    }

    /// Returns whether it requests tokens for an API or is its resource server.
    pub fn names(&self, audience: &str) -> bool {
        let mut named = self.resources.iter().chain(&self.serves);
        named.any(|known| known == audience)
    }

    /// Returns whether it may authenticate from this address. An unknown one, `None`, may be in any network.
    pub fn admits(&self, address: Option<IpAddr>) -> bool {
        let Some(address) = address else {
            return self.allow_networks.is_empty() && self.deny_networks.is_empty();
        };
        let allowed = self.allow_networks.is_empty() || is_in(&self.allow_networks, address);
        allowed && !is_in(&self.deny_networks, address)
    }

    /// Returns a hash of the redirect URIs. A remembered consent is no longer valid when it changes.
    pub fn shape(&self) -> Hash {
        let mut uris = self.redirect_uris.clone();
        uris.sort();
        Hash::from_bytes(sha256(uris.join("\n").as_bytes()).to_vec())
    }

    /// Returns the signature algorithms of its ID tokens and UserInfo responses.
    pub fn algorithms(&self) -> impl Iterator<Item = Alg> {
        std::iter::once(self.id_token_alg).chain(self.userinfo_alg)
    }

    /// Checks a registration against RFC 7591 §2 and the policy. `localhost` states whether every client may register
    /// the host name `localhost`; otherwise only public clients and those with `allow_localhost_redirect` may.
    ///
    /// # Errors
    /// All invalid fields. [`rejected`] converts them to an error of the protocol.
    pub fn check(&self, localhost: Localhost) -> Result<(), FieldErrors> {
        let mut errors = FieldErrors::none();
        let mut reject = |field, why: &str| errors.add(field, why);
        if let Err(why) = name::check(&self.name, CLIENT_NAME_CHARS) {
            reject("client_name", &why);
        }
        for (field, uri) in [
            ("client_uri", &self.client_uri),
            ("policy_uri", &self.policy_uri),
            ("tos_uri", &self.tos_uri),
        ] {
            if uri.as_ref().is_some_and(|uri| !is_plain_https(uri)) {
                reject(field, "expected an https URL");
            }
        }
        if let Some(uri) = &self.backchannel_logout_uri
            && let Err(why) = check_backchannel_uri(uri, localhost)
        {
            reject("backchannel_logout_uri", why);
        }
        if self.backchannel_logout_session_required && self.backchannel_logout_uri.is_none() {
            let why = "needs a backchannel_logout_uri";
            reject("backchannel_logout_session_required", why);
        }
        for odd in self.cors_origins.iter().filter(|origin| !is_origin(origin)) {
            let why = format!(
                "`{odd}` is not an origin such as https://app.example or capacitor://localhost"
            );
            reject("cors_origins", &why);
        }
        if self.auth_method == AuthMethod::PrivateKeyJwt && self.jwks.is_none() {
            let why = "private_key_jwt needs the public keys of the client";
            reject("jwks", why);
        }
        if !self.is_confidential() {
            if self.may_use(GrantType::ClientCredentials) {
                let why = "a public client has no secret, so it cannot use client_credentials";
                reject("grant_types", why);
            }
            if !self.serves.is_empty() {
                let why = "a resource server must authenticate, so it cannot be a public client";
                reject("serves", why);
            }
            if !self.require_pkce {
                reject("require_pkce", "a public client always needs PKCE");
            }
        }
        if self.redirect_uris.len() > REDIRECT_URIS {
            let why = format!("a client has at most {REDIRECT_URIS}");
            reject("redirect_uris", &why);
        }
        if self.may_use(GrantType::AuthorizationCode) && self.redirect_uris.is_empty() {
            let why = "the authorization_code grant needs a redirect URI";
            reject("redirect_uris", why);
        }
        // Policy §10: a public client, a development server, or by the switch.
        let localhost = match self.allow_localhost_redirect || !self.is_confidential() {
            true => Localhost::Allowed,
            false => localhost,
        };
        let client_type = match self.is_confidential() {
            true => ClientType::Confidential,
            false => ClientType::Public,
        };
        for (field, uris) in [
            ("redirect_uris", &self.redirect_uris),
            ("post_logout_redirect_uris", &self.post_logout_redirect_uris),
        ] {
            for uri in uris {
                if let Err((_, why)) = redirect_uri::check(uri, client_type, localhost) {
                    reject(field, &why);
                }
            }
        }
        errors.into_result()
    }
}

details! {
    enum Rejection {
        RedirectUri => Detail::new("registration.rejected", "redirect_uri"),
        Metadata => Detail::new("registration.rejected", "metadata"),
    }
}

/// Returns the error of a rejected registration (RFC 7591 §3.2.2).
pub fn rejected(errors: &FieldErrors) -> Error {
    let is_uri = |error: &FieldError| error.field == "redirect_uris";
    if errors.0.iter().any(is_uri) {
        return Error::invalid_redirect_uri(Rejection::RedirectUri);
    }
    Error::invalid_client_metadata(Rejection::Metadata)
}

/// Checks a client id that the operator chose: RFC 6749 appendix A.1, without space and colon, which HTTP Basic
/// cannot carry unencoded, and not in the form of the ids that this server generates. A token of a client has its id
/// as `sub`, so it must never equal the `sub` of a user (RFC 9700 §4.15.1).
///
/// # Errors
/// The rest of a sentence that starts with the name of the field.
pub fn check_id(id: &str) -> Result<(), String> {
    if crate::id::is_uuid(id) {
        return Err("must not be a UUID, because the ids of users are UUIDs; choose a name, or let the server generate the id".to_owned());
    }
    let is_allowed = |b: u8| b.is_ascii_graphic() && b != b':';
    if (1..=CLIENT_ID_CHARS).contains(&id.len()) && id.bytes().all(is_allowed) {
        return Ok(());
    }
    Err(format!(
        "must have 1 to {CLIENT_ID_CHARS} printable ASCII characters, no space and no colon"
    ))
}

/// Checks a back-channel logout URI: absolute, without a fragment (Back-Channel Logout §2.2). Plain http is for
/// development servers. Whether its address may be reached is decided when a request is sent.
fn check_backchannel_uri(uri: &str, localhost: Localhost) -> Result<(), &'static str> {
    let expected = match localhost {
        Localhost::Allowed => "expected an https or http URL without fragment and user name",
        Localhost::Forbidden => "expected an https URL without fragment and user name",
    };
    let url = url::Url::parse(uri).map_err(|_| expected)?;
    let has_scheme = match url.scheme() {
        "https" => true,
        "http" => localhost == Localhost::Allowed,
        _ => false,
    };
    let is_plain = url.username().is_empty() && url.password().is_none();
    match has_scheme && is_plain && url.has_host() && url.fragment().is_none() {
        true => Ok(()),
        false => Err(expected),
    }
}

fn is_plain_https(uri: &str) -> bool {
    url::Url::parse(uri).is_ok_and(|url| {
        url.scheme() == "https" && url.username().is_empty() && url.host_str().is_some()
    })
}

/// Schemes whose documents have no origin of their own: browsers send `Origin: null`.
const SCHEMES_WITHOUT_ORIGIN: [&str; 6] = [
    "about",
    "blob",
    "data",
    "filesystem",
    "javascript",
    "vbscript",
];

/// Returns whether the text is an origin exactly as browsers send it (RFC 6454 §6.2). Applications that are packed
/// with a browser engine have schemes of their own, with a host and without a port (`capacitor://localhost`).
fn is_origin(text: &str) -> bool {
    let Ok(url) = url::Url::parse(text) else {
        return false;
    };
    let scheme = url.scheme();
    if matches!(scheme, "https" | "http") {
        // The parser accepts `*` in a host.
        return url.origin().ascii_serialization() == text && !text.contains('*');
    }
    let is_host_byte =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    !url.is_special()
        && !SCHEMES_WITHOUT_ORIGIN.contains(&scheme)
        && url.host_str().is_some_and(|host| {
            !host.is_empty()
                && host.bytes().all(is_host_byte)
                && text == format!("{scheme}://{host}")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_of_packed_applications_are_accepted_and_other_texts_are_not() {
        for good in [
            "https://app.example",
            "http://localhost:3000",
            "capacitor://localhost",
            "ionic://localhost",
            "tauri://localhost",
            "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
            "moz-extension://0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0",
        ] {
            assert!(is_origin(good), "{good}");
        }
        for bad in [
            "",
            "*",
            "null",
            "localhost",
            "https://app.example/",
            "https://*.example",
            "capacitor://*",
            "capacitor://",
            "capacitor:localhost",
            "capacitor:/localhost",
            "capacitor:///localhost",
            "capacitor://localhost/",
            "capacitor://localhost:80",
            "capacitor://localhost?a",
            "capacitor://localhost#a",
            "capacitor://user@localhost",
            "capacitor://LOCALHOST",
            "Capacitor://localhost",
            "capacitor://loc%61lhost",
            " capacitor://localhost",
            "javascript://localhost",
            "data://localhost",
            "blob://localhost",
            "file://localhost",
            "ws://localhost",
        ] {
            assert!(!is_origin(bad), "{bad}");
        }
    }
}
