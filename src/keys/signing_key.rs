//! The row of a signing key: how it is sealed, and what it contains once opened.

use std::sync::Arc;

use portcullis_verifier::Jwk;

use super::error::KeyError;
use super::generated::Generated;
use super::provider::Parsed;
use super::ring::{Alg, Ring, Use};
use super::seal::{Keychain, Row};
use crate::secret::Entropy;
use crate::time::Timestamp;

/// The instants of a key that is yet to be generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timetable {
    /// Its number in the ring.
    pub generation: i64,
    /// When it is published.
    pub publish_at: Timestamp,
    /// When it starts to sign.
    pub activate_at: Timestamp,
    /// When it stops signing, if its successor is generated in the same change.
    pub retire_at: Option<Timestamp>,
    /// When it leaves the JWKS.
    pub remove_at: Option<Timestamp>,
}

impl Ring {
    /// Returns the keys of this ring among `keys`, in their order.
    pub fn among<'k>(
        self,
        keys: impl IntoIterator<Item = &'k SigningKey>,
    ) -> impl Iterator<Item = &'k SigningKey> {
        keys.into_iter().filter(move |key| key.ring() == self)
    }
}

/// A row of `signing_keys`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the columns; `rotation` explains the instants
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

/// An opened row: the public key, and the private key unless it was destroyed.
#[derive(Clone)]
pub struct Opened {
    /// The public key.
    pub public: Jwk,
    /// The private key, parsed.
    pub private: Option<Arc<Parsed>>,
}

impl Opened {
    /// Checks that this row contains what `before` contained: signs a test message and verifies it with the
    /// public key, or confirms that the private key was destroyed before.
    ///
    /// # Errors
    /// [`KeyError::Corrupt`] if the private key is missing, unexpected or not the one of the public key.
    pub fn self_test(&self, before: &Self, kid: &str) -> Result<(), KeyError> {
        let fails = || KeyError::Corrupt(format!("signing_keys {kid}"));
        match (&self.private, &before.private) {
            (Some(private), Some(_)) => private.self_test(&self.public).ok_or_else(fails),
            (None, None) => Ok(()),
            _ => Err(fails()),
        }
    }
}

impl SigningKey {
    /// Creates the row of a new key pair.
    ///
    /// # Errors
    /// [`KeyError::Generate`].
    pub fn new(
        pair: &Generated,
        issuer: &str,
        use_: Use,
        at: &Timetable,
        (keychain, entropy): (&Keychain, &Entropy),
        now: Timestamp,
    ) -> Result<Self, KeyError> {
        let public = pair.public();
        let mut key = Self {
            kid: public.thumbprint(),
            issuer: issuer.to_owned(),
            use_,
            alg: pair.alg(),
            generation: at.generation,
            public_jwk: serde_json::to_string(public)
                .map_err(|e| KeyError::Generate(e.to_string()))?,
            sealed: String::new(),
            publish_at: at.publish_at,
            activate_at: at.activate_at,
            retire_at: at.retire_at,
            remove_at: at.remove_at,
            revoked_at: None,
            revoke_reason: None,
            created_at: now,
        };
        key.sealed = keychain.seal(&key.row(), pair.private(), entropy)?;
        Ok(key)
    }

    /// Returns the ring of the key.
    pub fn ring(&self) -> Ring {
        Ring {
            use_: self.use_,
            alg: self.alg,
        }
    }

    /// Returns the row `changed`, sealed with the private key of this row.
    ///
    /// # Errors
    /// [`KeyError::UnknownKek`] or [`KeyError::Corrupt`] if this row does not open.
    pub fn resealed(
        &self,
        changed: &SigningKey,
        keychain: &Keychain,
        entropy: &Entropy,
    ) -> Result<Self, KeyError> {
        let private = keychain.open(&self.row(), &self.sealed)?;
        let sealed = keychain.seal(&changed.row(), &private, entropy)?;
        Ok(Self {
            sealed,
            ..changed.clone()
        })
    }

    /// Returns this row without its private key. The key cannot be recovered.
    ///
    /// # Errors
    /// [`KeyError::Generate`].
    pub fn destroyed(&self, keychain: &Keychain, entropy: &Entropy) -> Result<Self, KeyError> {
        let sealed = keychain.seal(&self.row(), &[], entropy)?;
        Ok(Self {
            sealed,
            ..self.clone()
        })
    }

    /// Opens the row. Checks that private key, public key and columns match.
    ///
    /// # Errors
    /// [`KeyError::UnknownKek`], [`KeyError::Corrupt`].
    pub fn open(&self, keychain: &Keychain) -> Result<Opened, KeyError> {
        let corrupt = || KeyError::Corrupt(format!("signing_keys {}", self.kid));
        let private = keychain.open(&self.row(), &self.sealed)?;
        let public: Jwk = serde_json::from_str(&self.public_jwk).map_err(|_| corrupt())?;
        if public.kid.as_deref() != Some(&self.kid)
            || public.thumbprint() != self.kid
            || public.alg.as_deref() != Some(self.alg.name())
        {
            return Err(corrupt());
        }
        if private.is_empty() {
            return Ok(Opened {
                public,
                private: None,
            });
        }
        let parsed = Parsed::new(self.alg, &private).ok_or_else(corrupt)?;
        if !parsed.matches(&public) {
            return Err(corrupt());
        }
        Ok(Opened {
            public,
            private: Some(parsed.registered_as(&self.kid)),
        })
    }

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
