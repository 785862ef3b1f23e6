//! Which records would hit a token.

use crate::{Claims, Digest, Kind};

/// The digests that a token is probed with, made once per token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Probes {
    pub(crate) token: Digest,
    pub(crate) session: Option<Digest>,
    pub(crate) grant: Option<Digest>,
    pub(crate) user: Digest,
    pub(crate) client: Digest,
}

impl Probes {
    pub(crate) fn of(claims: &Claims) -> Self {
        let maybe =
            |kind, value: &Option<String>| value.as_ref().map(|value| Digest::of(kind, value));
        Self {
            token: Digest::of(Kind::Token, &claims.jti),
            session: maybe(Kind::Session, &claims.sid),
            grant: maybe(Kind::Grant, &claims.grant_id),
            user: Digest::of(Kind::User, &claims.sub),
            client: Digest::of(Kind::Client, &claims.client_id),
        }
    }
}
