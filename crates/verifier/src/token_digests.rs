//! Digests of the revocation records that would revoke a token.

use crate::{Claims, Digest, Kind};

/// The digests under which a token is looked up among the revocation records. They are computed
/// once per token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TokenDigests {
    pub(crate) token: Digest,
    pub(crate) session: Option<Digest>,
    pub(crate) grant: Option<Digest>,
    pub(crate) user: Digest,
    pub(crate) client: Digest,
}

impl TokenDigests {
    pub(crate) fn from_claims(claims: &Claims) -> Self {
        let optional =
            |kind, value: &Option<String>| value.as_ref().map(|value| Digest::of(kind, value));
        Self {
            token: Digest::of(Kind::Token, &claims.jti),
            session: optional(Kind::Session, &claims.sid),
            grant: optional(Kind::Grant, &claims.grant_id),
            user: Digest::of(Kind::User, &claims.sub),
            client: Digest::of(Kind::Client, &claims.client_id),
        }
    }
}
