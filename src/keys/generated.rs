//! Key pairs that no database has seen yet: made here, or brought by an operator (RFC 7518 §3.3,
//! §3.4; RFC 8725 §3.5).

use std::sync::Arc;

use p256::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use portcullis_verifier::Jwk;
use rsa::pkcs1::EncodeRsaPrivateKey;
use rsa::traits::PublicKeyParts;
use zeroize::Zeroizing;

use super::error::KeyError;
use super::provider::Parsed;
use super::ring::Alg;
use super::seal::Unsealed;
use crate::secret::Entropy;

/// The only public exponent that is taken: 65537.
const EXPONENT: u64 = 0x1_0001;
const RSA_BITS: std::ops::RangeInclusive<usize> = 2_048..=4_096;

/// A key pair.
#[derive(Clone)]
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
            Alg::ES256 => Self::es256(&p256::SecretKey::random(&mut entropy.clone())),
            Alg::RS256 => {
                let key = rsa::RsaPrivateKey::new(&mut entropy.clone(), rsa_bits)
                    .map_err(|e| KeyError::Generate(e.to_string()))?;
                Self::rs256(&key)
            }
        }
    }

    /// Takes a private key in PKCS#8, PEM.
    ///
    /// # Errors
    /// [`KeyError::Refused`] with the reason: no P-256 and no RSA key, RSA under 2048 bits, over 4096,
    /// or with another exponent than 65537.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        if let Ok(key) = p256::SecretKey::from_pkcs8_pem(pem) {
            return Self::es256(&key);
        }
        let refused = |why: &'static str| KeyError::Refused(why);
        let key = rsa::RsaPrivateKey::from_pkcs8_pem(pem)
            .map_err(|_| refused("it is neither a P-256 nor an RSA key in PKCS#8 (PEM)"))?;
        if !RSA_BITS.contains(&key.n().bits()) {
            return Err(refused("an RSA key must have 2048 to 4096 bits"));
        }
        if *key.e() != rsa::BigUint::from(EXPONENT) {
            return Err(refused("the exponent of an RSA key must be 65537"));
        }
        key.validate()
            .map_err(|_| refused("its numbers do not fit each other"))?;
        Self::rs256(&key)
    }

    /// Its algorithm.
    pub fn alg(&self) -> Alg {
        self.alg
    }

    /// The half that is published.
    pub fn public(&self) -> &Jwk {
        &self.public
    }

    pub(super) fn private(&self) -> &[u8] {
        &self.private
    }

    fn es256(key: &p256::SecretKey) -> Result<Self, KeyError> {
        let broken = |error: String| KeyError::Generate(error);
        let pkcs8 = key.to_pkcs8_der().map_err(|e| broken(e.to_string()))?;
        let point =
            p256::elliptic_curve::sec1::ToEncodedPoint::to_encoded_point(&key.public_key(), false);
        let (Some(x), Some(y)) = (point.x(), point.y()) else {
            return Err(broken("a P-256 point without coordinates".to_owned()));
        };
        Self {
            alg: Alg::ES256,
            public: Jwk::es256((*x).as_ref(), (*y).as_ref()),
            private: Zeroizing::new(pkcs8.as_bytes().to_vec()),
        }
        .usable()
    }

    fn rs256(key: &rsa::RsaPrivateKey) -> Result<Self, KeyError> {
        let pkcs1 = key
            .to_pkcs1_der()
            .map_err(|e| KeyError::Generate(e.to_string()))?;
        Self {
            alg: Alg::RS256,
            public: Jwk::rs256(&key.n().to_bytes_be(), &key.e().to_bytes_be()),
            private: Zeroizing::new(pkcs1.as_bytes().to_vec()),
        }
        .usable()
    }

    /// What signs must be able to read it: a row that does not open would be an alarm.
    fn usable(self) -> Result<Self, KeyError> {
        match Parsed::new(self.alg, &self.private) {
            Some(parsed) if parsed.fits(&self.public) => Ok(self),
            _ => Err(KeyError::Refused("it cannot sign")),
        }
    }
}

type Make = dyn Fn(Alg, i64) -> Result<Generated, KeyError> + Send + Sync;

/// Where new key pairs come from. A value, like clock and entropy.
#[derive(Clone)]
pub struct KeySource(Arc<Make>);

impl KeySource {
    /// Fresh pairs from `entropy`.
    pub fn fresh(rsa_bits: usize, entropy: Entropy) -> Self {
        Self::from_fn(move |alg, _| Generated::new(alg, rsa_bits, &entropy))
    }

    /// Pairs that somebody else makes, for an algorithm and a generation.
    pub fn from_fn(
        make: impl Fn(Alg, i64) -> Result<Generated, KeyError> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(make))
    }

    /// A pair for a generation. May take half a second.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn make(&self, alg: Alg, generation: i64) -> Result<Generated, KeyError> {
        (self.0)(alg, generation)
    }
}

#[cfg(test)]
mod tests {
    use rsa::pkcs8::LineEnding;

    use super::*;

    fn pem(bits: usize, exponent: u64) -> String {
        let exponent = rsa::BigUint::from(exponent);
        let key =
            rsa::RsaPrivateKey::new_with_exp(&mut Entropy::seeded(5), bits, &exponent).unwrap();
        key.to_pkcs8_pem(LineEnding::LF).unwrap().to_string()
    }

    #[test]
    fn a_good_key_is_taken_with_its_thumbprint_as_kid() {
        let p256 = p256::SecretKey::random(&mut Entropy::seeded(4));
        let pem_p256 = p256.to_pkcs8_pem(LineEnding::LF).unwrap();
        let taken = Generated::from_pem(&pem_p256).unwrap();
        assert_eq!(taken.alg(), Alg::ES256);
        assert_eq!(taken.public().kid, Some(taken.public().thumbprint()));
        let taken = Generated::from_pem(&pem(2_048, EXPONENT)).unwrap();
        assert_eq!(taken.alg(), Alg::RS256);
        assert_eq!(taken.public().use_.as_deref(), Some("sig"));
    }

    #[test]
    fn a_weak_or_foreign_key_is_refused() {
        let why = |pem: &str| Generated::from_pem(pem).err().unwrap().to_string();
        assert!(why(&pem(1_024, EXPONENT)).contains("2048"));
        assert!(why(&pem(2_048, 3)).contains("65537"));
        assert!(why("nothing").contains("neither"));
    }
}
