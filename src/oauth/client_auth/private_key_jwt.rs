//! `private_key_jwt`: an assertion that the client signs (RFC 7523 §§2.2 and 3, OpenID Connect Core §9).

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::AuthenticationError;
use crate::config::limits::{ASSERTION_BYTES, ASSERTION_MAX, JTI_BYTES};
use crate::id::ClientId;
use crate::keys::client_key_set::{AssertionAlg, ClientKeySet, KeySetError};
use crate::oauth::client::{AssertionAudience, Client};
use crate::secret::{Hash, from_base64url};
use crate::time::Timestamp;

/// `client_assertion_type` (RFC 7523 §2.2).
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// What an assertion is checked against.
#[derive(Clone, Debug)]
pub struct AssertionRules {
    /// The issuer, which is the audience of assertions.
    pub issuer: String,
    /// The URL of the token endpoint, which some clients use instead.
    pub token_endpoint: String,
    /// Accepted difference to the clock of the client.
    pub leeway: Duration,
}

/// An assertion whose signature has not been verified.
#[derive(Debug)]
pub(super) struct Assertion {
    alg: AssertionAlg,
    kid: Option<String>,
    signed: String,
    signature: String,
    claims: AssertionClaims,
}

/// The first part of the assertion (RFC 7515 §4.1). Members that name keys are ignored (RFC 8725 §3.10).
#[derive(Deserialize)]
struct Header {
    alg: String,
    typ: Option<String>,
    kid: Option<String>,
    crit: Option<Value>,
}

/// The claims (RFC 7523 §3). Times are in seconds.
#[derive(Debug, Deserialize)]
struct AssertionClaims {
    iss: String,
    sub: String,
    aud: Value,
    exp: u64,
    iat: Option<u64>,
    nbf: Option<u64>,
    jti: String,
}

/// A valid assertion, which must be accepted once only.
#[derive(Clone, Debug)]
pub struct UsedAssertion {
    /// The client that signed it.
    pub client_id: ClientId,
    /// The hash of its `jti`.
    pub jti: Hash,
    /// When it is no longer valid, leeway included.
    pub expires_at: Timestamp,
}

impl Assertion {
    /// Parses an assertion, and returns the client that it claims to be.
    pub(super) fn parse(
        text: &str,
        kind: Option<&str>,
    ) -> Result<(ClientId, Self), AuthenticationError> {
        let malformed = AuthenticationError::Malformed;
        if kind != Some(ASSERTION_TYPE) || text.len() > ASSERTION_BYTES {
            return Err(malformed);
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(malformed)?;
        let header = from_base64url(header).ok_or(malformed)?;
        let header: Header = serde_json::from_slice(&header).map_err(|_| malformed)?;
        if header.crit.is_some() {
            return Err(malformed);
        }
        // RFC 8725 §3.11: a JWT for another purpose is not an assertion.
        let typ = header.typ.as_deref().unwrap_or("JWT");
        if !["JWT", "client-authentication+jwt"].contains(&typ) {
            return Err(AuthenticationError::Type);
        }
        let alg = AssertionAlg::from_name(&header.alg).ok_or(AuthenticationError::Alg)?;
        let payload = from_base64url(payload).ok_or(malformed)?;
        let claims: AssertionClaims =
            serde_json::from_slice(&payload).map_err(|_| AuthenticationError::Claim)?;
        if claims.iss != claims.sub {
            return Err(AuthenticationError::Claim);
        }
        let client_id = ClientId::from(claims.sub.as_str());
        let assertion = Self {
            alg,
            kid: header.kid,
            signed: signed.to_owned(),
            signature: signature.to_owned(),
            claims,
        };
        Ok((client_id, assertion))
    }

    /// Verifies the assertion with the keys of the client.
    pub(super) fn verify(
        &self,
        client: &Client,
        keys: &ClientKeySet,
        rules: &AssertionRules,
        now: Timestamp,
    ) -> Result<UsedAssertion, AuthenticationError> {
        if client.assertion_alg.is_some_and(|alg| alg != self.alg) {
            return Err(AuthenticationError::Alg);
        }
        let (message, kid) = (self.signed.as_bytes(), self.kid.as_deref());
        keys.verify(self.alg, kid, message, &self.signature)
            .map_err(|error| match error {
                KeySetError::UnknownKey => AuthenticationError::Key,
                KeySetError::Alg => AuthenticationError::Alg,
                KeySetError::Signature => AuthenticationError::Signature,
            })?;
        let audience = self.claims.aud.as_str();
        let is_for_us = audience == Some(rules.issuer.as_str())
            || (client.assertion_audience == AssertionAudience::IssuerOrTokenEndpoint
                && audience == Some(rules.token_endpoint.as_str()));
        if !is_for_us {
            return Err(AuthenticationError::Audience);
        }
        self.check_claims(client, rules.leeway, now)?;
        Ok(UsedAssertion {
            client_id: client.id.clone(),
            jti: Hash::of(&self.claims.jti),
            expires_at: Timestamp::from_secs(self.claims.exp) + rules.leeway,
        })
    }

    /// Checks the issuer, the times and the `jti` (RFC 7523 §3, policy §1).
    fn check_claims(
        &self,
        client: &Client,
        leeway: Duration,
        now: Timestamp,
    ) -> Result<(), AuthenticationError> {
        let AssertionClaims {
            sub,
            exp,
            iat,
            nbf,
            jti,
            ..
        } = &self.claims;
        let (earliest, latest) = (now.secs().saturating_sub(leeway.as_secs()), now + leeway);
        let is_in_future = |time: &Option<u64>| time.is_some_and(|time| time > latest.secs());
        let is_valid = *sub == client.id.as_str()
            && *exp > earliest
            && *exp <= (latest + ASSERTION_MAX).secs()
            && !is_in_future(iat)
            && !is_in_future(nbf)
            && (1..=JTI_BYTES).contains(&jti.len());
        match is_valid {
            true => Ok(()),
            false => Err(AuthenticationError::Claim),
        }
    }
}
