//! Rings of signing keys, and the view of them that a node holds in memory: signers and JWKS bytes.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use p256::pkcs8::EncodePrivateKey;
pub use portcullis_verifier::Algorithm as Alg;
use portcullis_verifier::{Jwk, JwkSet};
use rsa::pkcs1::EncodeRsaPrivateKey;
use rsa::traits::PublicKeyParts;
use serde::Serialize;
use zeroize::Zeroizing;

use super::provider::Parsed;
use super::rotation::{in_jwks, signer, state};
use super::seal::Row;
use super::{KeyError, Keychain, Unsealed};
use crate::secret::{Entropy, base64url, sha256};
use crate::time::Timestamp;

/// The algorithms of our rings.
pub const ALGS: [Alg; 2] = [Alg::ES256, Alg::RS256];

/// What the keys of a ring sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Use {
    /// Access and ID tokens.
    Token,
    /// Frames of the revocation feed.
    Feed,
}

impl Use {
    /// As stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Feed => "feed",
        }
    }

    /// From the stored form.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Token, Self::Feed]
            .into_iter()
            .find(|u| u.as_str() == text)
    }
}

/// A row of `signing_keys`.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // the columns of `shared` vocabulary: rotation states are explained in `rotation`
pub struct SigningKey {
    pub kid: String,
    pub issuer: String,
    pub use_: Use,
    pub alg: Alg,
    pub generation: i64,
    pub public_jwk: String,
    pub sealed: String,
    pub publish_at: Timestamp,
    pub activate_at: Timestamp,
    pub retire_at: Option<Timestamp>,
    pub remove_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
    pub revoke_reason: Option<String>,
    pub created_at: Timestamp,
}

impl SigningKey {
    fn row(&self) -> Row<'_> {
        let instant = |at: Timestamp| Some(at.micros().to_string());
        Row {
            table: "signing_keys",
            key: &self.kid,
            columns: vec![
                Some(self.issuer.clone()),
                Some(self.use_.as_str().to_owned()),
                Some(self.alg.name().to_owned()),
                Some(self.generation.to_string()),
                Some(self.public_jwk.clone()),
                instant(self.publish_at),
                instant(self.activate_at),
                self.retire_at.and_then(instant),
                self.remove_at.and_then(instant),
                self.revoked_at.and_then(instant),
                self.revoke_reason.clone(),
                instant(self.created_at),
            ],
        }
    }
}

/// A key pair that no database has seen yet.
pub struct Generated {
    alg: Alg,
    public: Jwk,
    private: Unsealed,
}

impl Generated {
    /// Makes a key pair. An RSA key takes about half a second: never on a request's path.
    ///
    /// # Errors
    /// [`KeyError::Generate`].
    pub fn new(alg: Alg, rsa_bits: usize, entropy: &Entropy) -> Result<Self, KeyError> {
        match alg {
            Alg::ES256 => Self::es256(entropy),
            Alg::RS256 => Self::rs256(rsa_bits, entropy),
        }
    }

    fn es256(entropy: &Entropy) -> Result<Self, KeyError> {
        let key = p256::SecretKey::random(&mut entropy.clone());
        let broken = |error: String| KeyError::Generate(error);
        let pkcs8 = key.to_pkcs8_der().map_err(|e| broken(e.to_string()))?;
        let point =
            p256::elliptic_curve::sec1::ToEncodedPoint::to_encoded_point(&key.public_key(), false);
        let (Some(x), Some(y)) = (point.x(), point.y()) else {
            return Err(broken("a P-256 point without coordinates".to_owned()));
        };
        Ok(Self {
            alg: Alg::ES256,
            public: Jwk::es256((*x).as_ref(), (*y).as_ref()),
            private: Zeroizing::new(pkcs8.as_bytes().to_vec()),
        })
    }

    fn rs256(bits: usize, entropy: &Entropy) -> Result<Self, KeyError> {
        let key = rsa::RsaPrivateKey::new(&mut entropy.clone(), bits)
            .map_err(|e| KeyError::Generate(e.to_string()))?;
        let pkcs1 = key
            .to_pkcs1_der()
            .map_err(|e| KeyError::Generate(e.to_string()))?;
        Ok(Self {
            alg: Alg::RS256,
            public: Jwk::rs256(&key.n().to_bytes_be(), &key.e().to_bytes_be()),
            private: Zeroizing::new(pkcs1.as_bytes().to_vec()),
        })
    }

    /// The row of generation 1: it signs at once, since nobody holds a cache yet.
    ///
    /// # Errors
    /// [`KeyError::Generate`].
    pub fn first_of_ring(
        self,
        issuer: &str,
        use_: Use,
        keychain: &Keychain,
        entropy: &Entropy,
        now: Timestamp,
    ) -> Result<SigningKey, KeyError> {
        let since = now - std::time::Duration::from_secs(60);
        let mut key = SigningKey {
            kid: self.public.thumbprint(),
            issuer: issuer.to_owned(),
            use_,
            alg: self.alg,
            generation: 1,
            public_jwk: serde_json::to_string(&self.public)
                .map_err(|e| KeyError::Generate(e.to_string()))?,
            sealed: String::new(),
            publish_at: since,
            activate_at: since,
            retire_at: None,
            remove_at: None,
            revoked_at: None,
            revoke_reason: None,
            created_at: now,
        };
        key.sealed = keychain.seal(&key.row(), &self.private, entropy)?;
        Ok(key)
    }
}

/// What a node holds of its keys: the signer of each ring, and the JWKS as ready bytes.
pub struct KeyView {
    signers: HashMap<Alg, Signer>,
    /// The published set.
    pub jwks: JwkSet,
    /// The published set, serialised once.
    pub jwks_bytes: Bytes,
    /// Strong entity tag of the bytes, with its quotes.
    pub etag: String,
}

struct Signer {
    kid: String,
    key: EncodingKey,
    // The provider finds the parsed key by kid for as long as somebody holds it.
    _parsed: Arc<Parsed>,
}

impl KeyView {
    /// Builds the view of the token rings at `now`.
    ///
    /// # Errors
    /// [`KeyError::UnknownKek`] when a row is sealed under a KEK that is not configured. A row that
    /// is corrupt is left out, never published and never signs; it is logged as `key.corrupt`.
    pub fn build(
        rows: &[SigningKey],
        keychain: &Keychain,
        now: Timestamp,
    ) -> Result<Self, KeyError> {
        let mut sound = Vec::new();
        for row in rows
            .iter()
            .filter(|row| row.use_ == Use::Token && in_jwks(state(row, now)))
        {
            match open(row, keychain) {
                Ok(opened) => sound.push((row, opened)),
                Err(error @ KeyError::UnknownKek { .. }) => return Err(error),
                Err(error) => {
                    tracing::error!(event = "key.corrupt", severity = "critical", kid = row.kid, %error, "a signing key is left out")
                }
            }
        }
        let mut signers = HashMap::new();
        for alg in ALGS {
            let ring = sound
                .iter()
                .map(|(row, _)| *row)
                .filter(|row| row.alg == alg);
            if let Some(row) = signer(ring, now)
                && let Some((_, (_, parsed))) = sound.iter().find(|(other, _)| other.kid == row.kid)
            {
                signers.insert(
                    alg,
                    Signer {
                        kid: row.kid.clone(),
                        key: parsed.encoding_key(&row.kid),
                        _parsed: Arc::clone(parsed),
                    },
                );
            }
        }
        let jwks = JwkSet {
            keys: sound.into_iter().map(|(_, (public, _))| public).collect(),
        };
        let jwks_bytes =
            Bytes::from(serde_json::to_vec(&jwks).map_err(|e| KeyError::Generate(e.to_string()))?);
        let etag = format!("\"{}\"", base64url(&sha256(&jwks_bytes)[..16]));
        Ok(Self {
            signers,
            jwks,
            jwks_bytes,
            etag,
        })
    }

    /// Signs `claims` as a compact JWS (RFC 7515 §3.1) with the ring's signer.
    ///
    /// # Errors
    /// [`KeyError::NoSigner`], [`KeyError::Sign`].
    pub fn sign(&self, alg: Alg, typ: &str, claims: &impl Serialize) -> Result<String, KeyError> {
        let signer = self.signers.get(&alg).ok_or(KeyError::NoSigner(alg))?;
        let header = Header {
            typ: Some(typ.to_owned()),
            kid: Some(signer.kid.clone()),
            ..Header::new(match alg {
                Alg::ES256 => Algorithm::ES256,
                Alg::RS256 => Algorithm::RS256,
            })
        };
        Ok(jsonwebtoken::encode(&header, claims, &signer.key)?)
    }

    /// The claims of a token that a published key of ours signed, whatever its expiry; `None` unless
    /// its type is `typ`. For hints: who was this about?
    pub fn verify(
        &self,
        token: &str,
        typ: &str,
    ) -> Option<serde_json::Map<String, serde_json::Value>> {
        let header = jsonwebtoken::decode_header(token).ok()?;
        if header.typ.as_deref() != Some(typ) || header.crit.is_some() {
            return None;
        }
        let kid = header.kid?;
        let jwk = self
            .jwks
            .keys
            .iter()
            .find(|jwk| jwk.kid.as_ref() == Some(&kid))?;
        let member = |value: &'_ Option<String>| value.clone().unwrap_or_default();
        let (alg, key) = match Alg::from_name(jwk.alg.as_deref()?)? {
            Alg::ES256 => (
                Algorithm::ES256,
                DecodingKey::from_ec_components(&member(&jwk.x), &member(&jwk.y)),
            ),
            Alg::RS256 => (
                Algorithm::RS256,
                DecodingKey::from_rsa_components(&member(&jwk.n), &member(&jwk.e)),
            ),
        };
        let mut only_the_signature = Validation::new(alg);
        only_the_signature.validate_exp = false;
        only_the_signature.validate_aud = false;
        only_the_signature.required_spec_claims.clear();
        jsonwebtoken::decode(token, &key.ok()?, &only_the_signature)
            .ok()
            .map(|data| data.claims)
    }

    /// Whether every ring has a signer.
    pub fn complete(&self) -> bool {
        ALGS.iter().all(|alg| self.signers.contains_key(alg))
    }
}

/// Opens a row and checks that its private half fits what it publishes.
fn open(row: &SigningKey, keychain: &Keychain) -> Result<(Jwk, Arc<Parsed>), KeyError> {
    let corrupt = || KeyError::Corrupt(format!("signing_keys {}", row.kid));
    let private = keychain.open(&row.row(), &row.sealed)?;
    let public: Jwk = serde_json::from_str(&row.public_jwk).map_err(|_| corrupt())?;
    if public.kid.as_deref() != Some(&row.kid)
        || public.thumbprint() != row.kid
        || public.alg.as_deref() != Some(row.alg.name())
    {
        return Err(corrupt());
    }
    let parsed = Parsed::new(row.alg, &private).ok_or_else(corrupt)?;
    if !parsed.fits(&public) {
        return Err(corrupt());
    }
    Ok((public, parsed.known_as(&row.kid)))
}
