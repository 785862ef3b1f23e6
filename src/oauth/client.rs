//! A registered client and what it may do: RFC 6749 §2, RFC 7591 §2.

use std::net::IpAddr;

use portcullis_verifier::MaxAge;

use super::error::{Detail, Error};
use super::redirect_uri;
use super::request::scope::Scope;
use super::resource::Resource;
use crate::accounts::{FieldError, FieldErrors, name};
use crate::config::limits::{CLIENT_ID_CHARS, CLIENT_NAME_CHARS, REDIRECT_URIS};
use crate::config::{Network, is_in};
use crate::id::ClientId;
use crate::keys::Alg;
use crate::secret::{Entropy, Hash, Secret, sha256};
use crate::time::Timestamp;

/// A registered client.
#[derive(Clone, Debug)]
pub struct Client {
    /// `client_id`.
    pub id: ClientId,
    /// What people see.
    pub name: String,
    /// How it authenticates; `none` makes it a public client.
    pub auth_method: AuthMethod,
    /// Where answers may go.
    pub redirect_uris: Vec<String>,
    /// The grants it may use.
    pub grant_types: Vec<GrantType>,
    /// The scopes it may ask for.
    pub scopes: Scope,
    /// The APIs it may ask tokens for, by audience; the first is the default.
    pub resources: Vec<String>,
    /// Origins whose scripts may call the token endpoint.
    pub cors_origins: Vec<String>,
    /// Where a browser may be sent after logout.
    pub post_logout_redirect_uris: Vec<String>,
    /// Signature algorithm of its ID tokens.
    pub id_token_alg: Alg,
    /// When people are asked.
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
    /// The APIs that it is the resource server of, by audience: it may introspect their tokens
    /// (RFC 7662).
    pub serves: Vec<String>,
    /// `userinfo_signed_response_alg` (OIDC Registration §2): signed answers, if set.
    pub userinfo_alg: Option<Alg>,
    /// Networks that it may prove itself from; empty is all.
    pub allow_networks: Vec<Network>,
    /// Networks that it may not, whatever the others say.
    pub deny_networks: Vec<Network>,
    /// Raised by a cut-off.
    pub auth_epoch: i64,
    /// Set when it is switched off.
    pub disabled_at: Option<Timestamp>,
    /// Set when it is deleted: the row stays, its id is never given out again.
    pub deleted_at: Option<Timestamp>,
    /// When it was registered.
    pub created_at: Timestamp,
    /// Its secrets, the oldest first.
    pub secrets: Vec<ClientSecret>,
}

/// One of a client's secrets; the database knows its hash alone.
#[derive(Clone, Debug)]
pub struct ClientSecret {
    /// Row id.
    pub id: String,
    /// SHA-256.
    pub hash: Hash,
    /// What the operator calls it.
    pub label: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
    /// When it last proved its client, to the hour.
    pub last_used_at: Option<Timestamp>,
}

impl ClientSecret {
    /// What is kept of a fresh secret.
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

    /// Whether it is still good.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|at| now < at)
    }
}

/// A client and the APIs that it may ask for, as they were read together.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The client.
    pub client: Client,
    /// Its registered resources, in the client's order.
    pub resources: Vec<Resource>,
    /// The feed epoch of that moment, which tokens carry.
    pub feed_epoch: i64,
    /// For a resource server: the oldest news of revocations that the registrations of all its APIs
    /// allow it.
    pub max_age: MaxAge,
}

/// `token_endpoint_auth_method` (RFC 7591 §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthMethod {
    /// HTTP Basic.
    Basic,
    /// In the form.
    Post,
    /// A public client.
    None,
}

/// `grant_types` (RFC 7591 §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantType {
    /// `authorization_code`.
    AuthorizationCode,
    /// `refresh_token`.
    RefreshToken,
    /// `client_credentials`.
    ClientCredentials,
}

/// When people are asked for consent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsentPolicy {
    /// Once, and again when more is asked for.
    Remember,
    /// Each time.
    Always,
    /// Never: the operator's own application.
    Skip,
}

macro_rules! names {
    ($type:ident: $($variant:ident $name:literal),*) => {
        impl $type {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The registered name, also as stored.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// From the registered name.
            pub fn parse(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|known| known.as_str() == text)
            }
        }
    };
}

names!(AuthMethod: Basic "client_secret_basic", Post "client_secret_post", None "none");
names!(GrantType: AuthorizationCode "authorization_code", RefreshToken "refresh_token", ClientCredentials "client_credentials");
names!(ConsentPolicy: Remember "remember", Always "always", Skip "skip");

impl Client {
    /// A confidential client with all defaults (RFC 7591 §2): it has no name yet, and nowhere to go.
    pub fn new(id: ClientId, now: Timestamp) -> Self {
        Self {
            id,
            name: String::new(),
            auth_method: AuthMethod::Basic,
            redirect_uris: Vec::new(),
            grant_types: vec![GrantType::AuthorizationCode, GrantType::RefreshToken],
            scopes: Scope::default(),
            resources: Vec::new(),
            cors_origins: Vec::new(),
            post_logout_redirect_uris: Vec::new(),
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

    /// Whether it can keep a secret.
    pub fn is_confidential(&self) -> bool {
        self.auth_method != AuthMethod::None
    }

    /// Whether it may use the grant.
    pub fn may_use(&self, grant: GrantType) -> bool {
        self.grant_types.contains(&grant)
    }

    /// Whether it asks for tokens of an API, or is its resource server.
    pub fn names(&self, audience: &str) -> bool {
        let mut named = self.resources.iter().chain(&self.serves);
        named.any(|known| known == audience)
    }

    /// Whether it may prove itself from this address.
    pub fn admits(&self, address: IpAddr) -> bool {
        let allowed = self.allow_networks.is_empty() || is_in(&self.allow_networks, address);
        allowed && !is_in(&self.deny_networks, address)
    }

    /// What a remembered consent rests on: when it changes, people are asked again.
    pub fn shape(&self) -> Hash {
        let mut uris = self.redirect_uris.clone();
        uris.sort();
        Hash::from_bytes(sha256(uris.join("\n").as_bytes()).to_vec())
    }

    /// The algorithms that answers to it are signed with.
    pub fn algorithms(&self) -> impl Iterator<Item = Alg> {
        std::iter::once(self.id_token_alg).chain(self.userinfo_alg)
    }

    /// Checks a registration as RFC 7591 §2 and the policy demand.
    ///
    /// # Errors
    /// All fields that are not accepted; [`rejected`] is the error of the protocol.
    pub fn check(&self, issuer_is_loopback: bool) -> Result<(), FieldErrors> {
        let mut errors = FieldErrors::none();
        let mut refuse = |field, why: &str| errors.add(field, why);
        if let Err(why) = name::check(&self.name, CLIENT_NAME_CHARS) {
            refuse("client_name", &why);
        }
        for (field, uri) in [
            ("client_uri", &self.client_uri),
            ("policy_uri", &self.policy_uri),
            ("tos_uri", &self.tos_uri),
        ] {
            if uri.as_ref().is_some_and(|uri| !is_plain_https(uri)) {
                refuse(field, "expected an https URL");
            }
        }
        for odd in self.cors_origins.iter().filter(|origin| !is_origin(origin)) {
            let why = format!("`{odd}` is not an origin such as https://app.example");
            refuse("cors_origins", &why);
        }
        if !self.is_confidential() {
            if self.may_use(GrantType::ClientCredentials) {
                let why = "a public client has no secret, so it cannot use client_credentials";
                refuse("grant_types", why);
            }
            if !self.serves.is_empty() {
                let why = "a resource server must authenticate, so it cannot be a public client";
                refuse("serves", why);
            }
            if !self.require_pkce {
                refuse("require_pkce", "a public client always needs PKCE");
            }
        }
        if self.redirect_uris.len() > REDIRECT_URIS {
            let why = format!("a client has at most {REDIRECT_URIS}");
            refuse("redirect_uris", &why);
        }
        if self.may_use(GrantType::AuthorizationCode) && self.redirect_uris.is_empty() {
            let why = "the authorization_code grant needs a redirect URI";
            refuse("redirect_uris", why);
        }
        let localhost = self.allow_localhost_redirect || issuer_is_loopback;
        for (field, uris) in [
            ("redirect_uris", &self.redirect_uris),
            ("post_logout_redirect_uris", &self.post_logout_redirect_uris),
        ] {
            for uri in uris {
                if let Err((_, why)) = redirect_uri::check(uri, !self.is_confidential(), localhost)
                {
                    refuse(field, &why);
                }
            }
        }
        errors.into_result()
    }
}

/// The error of a registration that was refused (RFC 7591 §3.2.2).
pub fn rejected(errors: &FieldErrors) -> Error {
    let is_uri = |error: &FieldError| error.field == "redirect_uris";
    if errors.0.iter().any(is_uri) {
        return Error::invalid_redirect_uri(Detail::new("registration.rejected", "redirect_uri"));
    }
    Error::invalid_client_metadata(Detail::new("registration.rejected", "metadata"))
}

/// Checks an id that an operator chose: RFC 6749 appendix A.1, without the space and the colon, which
/// would need care in HTTP Basic.
///
/// # Errors
/// The rest of a sentence that begins with the field.
pub fn check_id(id: &str) -> Result<(), String> {
    let good = |b: u8| b.is_ascii_graphic() && b != b':';
    if (1..=CLIENT_ID_CHARS).contains(&id.len()) && id.bytes().all(good) {
        return Ok(());
    }
    Err(format!(
        "must have 1 to {CLIENT_ID_CHARS} printable ASCII characters, no space and no colon"
    ))
}

fn is_plain_https(uri: &str) -> bool {
    url::Url::parse(uri).is_ok_and(|url| {
        url.scheme() == "https" && url.username().is_empty() && url.host_str().is_some()
    })
}

fn is_origin(text: &str) -> bool {
    url::Url::parse(text).is_ok_and(|url| {
        matches!(url.scheme(), "https" | "http") && url.origin().ascii_serialization() == text
    })
}
