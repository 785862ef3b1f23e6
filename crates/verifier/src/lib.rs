//! Verification of Portcullis access tokens (RFC 9068) inside a resource server: no call to the
//! issuer per request, one background task that keeps the keys fresh.
//!
//! ```no_run
//! # async fn service(token: &str) -> Result<(), Box<dyn std::error::Error>> {
//! use portcullis_verifier::{Need, Verifier};
//!
//! let verifier = Verifier::builder("https://id.example", "https://api.example").start().await?;
//! let claims = verifier.verify(token, &Need::scope("orders:read"))?;
//! println!("hello, {}", claims.sub);
//! # Ok(())
//! # }
//! ```
//!
//! A token is checked in this order, and the first check that fails is the answer: size, three
//! parts of strict base64url, header (`alg`, `typ`, `crit`), key by `kid`, signature, claims,
//! scope.
//!
//! | Module | What it follows |
//! |---|---|
//! | [`Claims`] | RFC 9068 §2.2, RFC 7519 §4.1 |
//! | [`Jwk`], [`JwkSet`], [`Keys`] | RFC 7517, RFC 7518 §6, RFC 7638 |
//! | [`Rejected`] | RFC 6750 §3 |
//! | [`Frame`], [`Record`] | the issuer's revocation feed |
//! | [`Builder::start`] | OpenID Connect Discovery §4 |

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

#[cfg(feature = "actix")]
pub mod actix;
mod algorithm;
mod builder;
mod cache;
mod claims;
mod clock;
mod demand;
mod fetch;
mod frame;
mod jwks;
mod key;
mod keys;
mod record;
mod rejected;
mod rev;
mod token;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

pub use algorithm::Algorithm;
pub use builder::{Builder, StartError};
pub use claims::{Claims, Confirmation};
pub use fetch::FetchError;
pub use frame::{
    Ack, AckAnswer, FRAME_LIFE_SECS, FRAME_MAX_BYTES, FRAME_MAX_RECORDS, FRAME_TYP, FRAME_VERSION,
    Frame, Frames, InvalidPosition, Position,
};
pub use jwks::{Jwk, JwkSet};
pub use key::Key;
pub use keys::{DuplicateKid, Keys};
pub use record::{Digest, InvalidRecords, Kind, PACKED_BYTES, Record, Records};
pub use rejected::Rejected;
pub use rev::{InvalidRev, Rev};

use cache::{Cache, Refresher};
use token::Unverified;

/// What a request needs of the token that it brings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Need {
    scopes: Vec<Cow<'static, str>>,
}

impl Need {
    /// Any valid token.
    pub const fn any() -> Self {
        Self { scopes: Vec::new() }
    }

    /// A token that was granted this scope, a single word (RFC 6749 §3.3).
    pub fn scope(scope: impl Into<Cow<'static, str>>) -> Self {
        Self::any().and(scope)
    }

    /// And this scope too.
    #[must_use]
    pub fn and(mut self, scope: impl Into<Cow<'static, str>>) -> Self {
        self.scopes.push(scope.into());
        self
    }

    fn met_by(&self, claims: &Claims) -> Result<(), Rejected> {
        if self.scopes.iter().all(|scope| claims.has_scope(scope)) {
            Ok(())
        } else {
            Err(Rejected::Scope {
                needed: self.scopes.join(" "),
            })
        }
    }
}

/// Turns tokens into [`Claims`], or says why not. Cheap to clone; clones share their keys.
#[derive(Clone)]
pub struct Verifier {
    inner: Arc<Inner>,
}

struct Inner {
    expected: Expected,
    cache: Arc<Cache>,
    /// Ends the background task when the last clone goes.
    _refresher: Option<Refresher>,
}

/// What every token must be, whatever the request.
struct Expected {
    issuer: String,
    /// `None`: any audience.
    audience: Option<String>,
    algorithms: Vec<Algorithm>,
    leeway_secs: u64,
}

impl Verifier {
    /// Describes a verifier for the tokens of `issuer` that are meant for `audience`. Both are
    /// compared byte for byte (RFC 9068 §4), so a trailing slash matters.
    pub fn builder(issuer: impl Into<String>, audience: impl Into<String>) -> Builder {
        Builder::new(issuer.into(), audience.into())
    }

    /// Verifies a token at this instant. Never waits and never calls the issuer; a `kid` that is
    /// not known lets the background task fetch the keys, at most once in 30 s.
    ///
    /// # Errors
    ///
    /// [`Rejected`] says which check failed first.
    pub fn verify(&self, token: &str, need: &Need) -> Result<Claims, Rejected> {
        self.verify_at(token, need, clock::now_secs())
    }

    /// [`verify`](Self::verify) at another instant: `now_secs`, seconds since the Unix epoch, is
    /// what the token's own times are compared with.
    ///
    /// # Errors
    ///
    /// As [`verify`](Self::verify).
    pub fn verify_at(&self, token: &str, need: &Need, now_secs: u64) -> Result<Claims, Rejected> {
        let token = Unverified::parse(token, &self.inner.expected.algorithms)?;
        let verdict = self.inner.judge(&token, need, now_secs);
        if lacks_key(&verdict) {
            self.inner.cache.demand(token.kid(), now_secs);
        }
        verdict
    }

    /// [`verify`](Self::verify), but a `kid` that is not known waits for the fetch that it caused,
    /// or for the one in flight (2 s at most), and is then looked up again. So the first token of a
    /// new key passes.
    ///
    /// # Errors
    ///
    /// As [`verify`](Self::verify).
    pub async fn verify_fresh(&self, token: &str, need: &Need) -> Result<Claims, Rejected> {
        self.verify_fresh_at(token, need, clock::now_secs()).await
    }

    /// [`verify_fresh`](Self::verify_fresh) at another instant, as in
    /// [`verify_at`](Self::verify_at).
    ///
    /// # Errors
    ///
    /// As [`verify`](Self::verify).
    pub async fn verify_fresh_at(
        &self,
        token: &str,
        need: &Need,
        now_secs: u64,
    ) -> Result<Claims, Rejected> {
        let token = Unverified::parse(token, &self.inner.expected.algorithms)?;
        let verdict = self.inner.judge(&token, need, now_secs);
        if !lacks_key(&verdict) {
            return verdict;
        }
        self.inner.cache.refetch(token.kid(), now_secs).await;
        self.inner.judge(&token, need, now_secs)
    }

    /// Puts other keys in the place of those given by value, for all clones; an issuer that
    /// verifies its own tokens does this when its keys rotate. Where the keys are fetched, the next
    /// fetch undoes it.
    ///
    /// # Errors
    ///
    /// [`StartError::NoKeys`], [`StartError::DuplicateKid`]; then the keys are what they were.
    pub fn replace_keys(&self, keys: &JwkSet) -> Result<(), StartError> {
        let keys = Keys::parse(keys)?;
        if keys.is_empty() {
            return Err(StartError::NoKeys);
        }
        self.inner.cache.replace(keys);
        Ok(())
    }

    /// The issuer whose tokens are accepted.
    pub fn issuer(&self) -> &str {
        &self.inner.expected.issuer
    }

    fn new(expected: Expected, cache: Arc<Cache>, refresher: Option<Refresher>) -> Self {
        Self {
            inner: Arc::new(Inner {
                expected,
                cache,
                _refresher: refresher,
            }),
        }
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("issuer", &self.inner.expected.issuer)
            .field("audience", &self.inner.expected.audience)
            .finish_non_exhaustive()
    }
}

fn lacks_key(verdict: &Result<Claims, Rejected>) -> bool {
    matches!(verdict, Err(Rejected::UnknownKey | Rejected::Unavailable))
}

impl Inner {
    /// Everything that follows the header, in the order of the crate's first page.
    fn judge(&self, token: &Unverified<'_>, need: &Need, now: u64) -> Result<Claims, Rejected> {
        self.signed(token)?;
        let claims = Claims::parse(token.payload())?;
        self.expected.of(&claims)?;
        self.expected.at(&claims, now)?;
        need.met_by(&claims)?;
        Ok(claims)
    }

    /// RFC 7515 §5.2; the key's own `alg` decides, not the header's (RFC 8725 §3.1).
    fn signed(&self, token: &Unverified<'_>) -> Result<(), Rejected> {
        let held = self.cache.held();
        // How old the keys are is a matter of the real clock, whatever instant the token is
        // judged at.
        let keys = held.at(clock::now_secs()).ok_or(Rejected::Unavailable)?;
        let key = keys.find(token.kid()).ok_or(Rejected::UnknownKey)?;
        if key.algorithm() != token.algorithm() {
            return Err(Rejected::Algorithm);
        }
        match key.verifies(token.signature(), token.signed()) {
            Some(true) => Ok(()),
            Some(false) => Err(Rejected::Signature),
            None => Err(Rejected::Malformed),
        }
    }
}

impl Expected {
    /// RFC 9068 §4: from our issuer, for our audience.
    fn of(&self, claims: &Claims) -> Result<(), Rejected> {
        if claims.iss != self.issuer {
            return Err(Rejected::Issuer);
        }
        match &self.audience {
            Some(audience) if claims.aud != *audience => Err(Rejected::Audience),
            _ => Ok(()),
        }
    }

    /// RFC 7519 §4.1.4 to §4.1.6. A token from the future is refused as well: its issuer's clock
    /// is wrong, and so is its `exp`.
    fn at(&self, claims: &Claims, now: u64) -> Result<(), Rejected> {
        if now >= claims.exp.saturating_add(self.leeway_secs) {
            return Err(Rejected::Expired);
        }
        let begins = claims.nbf.unwrap_or(claims.iat).max(claims.iat);
        if begins > now.saturating_add(self.leeway_secs) {
            return Err(Rejected::NotYetValid);
        }
        Ok(())
    }
}
