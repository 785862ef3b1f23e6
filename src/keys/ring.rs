//! Rings of signing keys: the row of a key, how it is sealed, and what opens.

use std::sync::Arc;

pub use portcullis_verifier::Algorithm as Alg;
use portcullis_verifier::Jwk;

use super::generated::Generated;
use super::provider::Parsed;
use super::rotation::Timetable;
use super::seal::Row;
use super::{KeyError, Keychain};
use crate::config;
use crate::secret::Entropy;
use crate::time::Timestamp;

/// What the keys of a ring sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

/// Which ring of an issuer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ring {
    /// What its keys sign.
    pub use_: Use,
    /// Their algorithm.
    pub alg: Alg,
}

impl Ring {
    /// The ring that signs frames of the feed.
    pub const FEED: Self = Self {
        use_: Use::Feed,
        alg: Alg::ES256,
    };

    /// The ring of the token keys of an algorithm.
    pub const fn token(alg: Alg) -> Self {
        Self {
            use_: Use::Token,
            alg,
        }
    }

    /// The rings that a configuration keeps: one of tokens for each algorithm, and the feed's.
    pub fn configured(keys: &config::Keys) -> Vec<Self> {
        let token = offered(keys).into_iter().map(Self::token);
        token.chain([Self::FEED]).collect()
    }

    /// The keys of this ring among `keys`, in their order.
    pub fn among<'k>(
        self,
        keys: impl IntoIterator<Item = &'k SigningKey>,
    ) -> impl Iterator<Item = &'k SigningKey> {
        keys.into_iter().filter(move |key| key.ring() == self)
    }
}

/// The algorithms that tokens can be signed with, the default of OpenID Connect first.
pub fn offered(keys: &config::Keys) -> Vec<Alg> {
    let named = |alg: &Alg| keys.algorithms.iter().any(|name| name == alg.name());
    [Alg::RS256, Alg::ES256].into_iter().filter(named).collect()
}

/// Refuses an algorithm that no ring is kept for.
///
/// # Errors
/// A sentence.
pub fn check_offered(keys: &config::Keys, alg: Alg) -> Result<(), String> {
    match offered(keys).contains(&alg) {
        true => Ok(()),
        false => Err(format!(
            "{} is not offered here: `keys.algorithms` leaves it out",
            alg.name()
        )),
    }
}

impl std::fmt::Display for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.use_.as_str(), self.alg.name())
    }
}

/// A row of `signing_keys`.
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// A row that opened: what it publishes, and its private half unless that is destroyed.
#[derive(Clone)]
pub struct Opened {
    /// The public half.
    pub public: Jwk,
    /// The private half, parsed.
    pub private: Option<Arc<Parsed>>,
}

impl Opened {
    /// Signs once and verifies that with the public half. `able`: whether a private half must be there.
    ///
    /// # Errors
    /// [`KeyError::Corrupt`] when it cannot do what it should.
    pub fn proves_itself(&self, able: bool, kid: &str) -> Result<(), KeyError> {
        let fails = || KeyError::Corrupt(format!("signing_keys {kid}"));
        match &self.private {
            Some(private) if able => private.proves_itself(&self.public).ok_or_else(fails),
            None if !able => Ok(()),
            _ => Err(fails()),
        }
    }
}

impl SigningKey {
    /// The row of a key pair that no database has seen yet.
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

    /// Its ring.
    pub fn ring(&self) -> Ring {
        Ring {
            use_: self.use_,
            alg: self.alg,
        }
    }

    /// This row with other columns, sealed anew with the same private half.
    ///
    /// # Errors
    /// [`KeyError::UnknownKek`] or [`KeyError::Corrupt`] when it does not open as it stands.
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

    /// This row without its private half, for good.
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

    /// Opens the row, and checks that its halves fit each other and its columns.
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
        if !parsed.fits(&public) {
            return Err(corrupt());
        }
        Ok(Opened {
            public,
            private: Some(parsed.known_as(&self.kid)),
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
