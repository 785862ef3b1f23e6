//! Our crypto provider for `jsonwebtoken`. The stock one parses the private key at every signature,
//! which costs more than the signature itself; this one finds the parsed key by its kid. Everything
//! else is the stock aws-lc provider. The factory is also the seam for other kinds of signers.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Weak};

use arc_swap::ArcSwap;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, aws_lc};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{Algorithm, EncodingKey};
use portcullis_verifier::Jwk;

use super::decoding::decoding_key;
use super::ring::Alg;
use crate::secret::{base64url, from_base64url};

/// A private key, parsed once.
pub struct Parsed(Pair);

enum Pair {
    Es256(EcdsaKeyPair),
    Rs256(RsaKeyPair),
}

static KEYS: LazyLock<ArcSwap<HashMap<String, Weak<Parsed>>>> = LazyLock::new(ArcSwap::default);

static PROVIDER: LazyLock<CryptoProvider> = LazyLock::new(|| CryptoProvider {
    signer_factory,
    verifier_factory: aws_lc::DEFAULT_PROVIDER.verifier_factory,
    key_utils: aws_lc::DEFAULT_PROVIDER.key_utils.clone(),
});

/// Makes this provider the process's own. Calling it again changes nothing.
pub fn install() {
    // Err means that it is installed already.
    let _ = PROVIDER.install_default();
}

impl Parsed {
    /// Parses a private key (PKCS#8 for ES256, PKCS#1 for RS256). `None` when it is no such key.
    pub fn new(alg: Alg, private: &[u8]) -> Option<Self> {
        Some(Self(match alg {
            Alg::ES256 => Pair::Es256(
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, private).ok()?,
            ),
            Alg::RS256 => Pair::Rs256(RsaKeyPair::from_der(private).ok()?),
        }))
    }

    /// Makes it known under `kid` until the last `Arc` is dropped. It must fit the published half, so
    /// one that is known already is the same key, and stays: who holds it must go on signing.
    pub fn known_as(self, kid: &str) -> Arc<Self> {
        let ours = Arc::new(self);
        let mut parsed = Arc::clone(&ours);
        KEYS.rcu(|known| {
            let mut known: HashMap<_, _> = known
                .iter()
                .filter(|(_, key)| key.strong_count() > 0)
                .map(|(kid, key)| (kid.clone(), Weak::clone(key)))
                .collect();
            parsed = match known.get(kid).and_then(Weak::upgrade) {
                Some(standing) => standing,
                None => Arc::clone(&ours),
            };
            known.insert(kid.to_owned(), Arc::downgrade(&parsed));
            known
        });
        parsed
    }

    /// What `jsonwebtoken` carries around: the kid in the place of key bytes.
    pub fn encoding_key(&self, kid: &str) -> EncodingKey {
        match self.0 {
            Pair::Es256(_) => EncodingKey::from_ec_der(kid.as_bytes()),
            Pair::Rs256(_) => EncodingKey::from_rsa_der(kid.as_bytes()),
        }
    }

    /// Whether the private half belongs to this public one.
    pub fn fits(&self, public: &Jwk) -> bool {
        let member = |value: &Option<String>| {
            value
                .as_deref()
                .and_then(from_base64url)
                .unwrap_or_default()
        };
        match &self.0 {
            Pair::Es256(pair) => {
                let point = [vec![4], member(&public.x), member(&public.y)].concat();
                pair.public_key().as_ref() == point
            }
            Pair::Rs256(pair) => {
                let key = pair.public_key();
                key.modulus().big_endian_without_leading_zero() == member(&public.n)
                    && key.exponent().big_endian_without_leading_zero() == member(&public.e)
            }
        }
    }

    /// Signs once and verifies that with `public`; `None` when the two do not belong together.
    pub fn self_test(&self, public: &Jwk) -> Option<()> {
        const MESSAGE: &[u8] = b"portcullis";
        let signature = base64url(&self.sign(MESSAGE).ok()?);
        let (alg, key) = decoding_key(public)?;
        let verified = jsonwebtoken::crypto::verify(&signature, MESSAGE, &key, alg);
        verified.is_ok_and(|good| good).then_some(())
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        let random = SystemRandom::new();
        let failed = |_| signature::Error::new();
        match &self.0 {
            Pair::Es256(pair) => Ok(pair
                .sign(&random, message)
                .map_err(failed)?
                .as_ref()
                .to_vec()),
            Pair::Rs256(pair) => {
                let mut bytes = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut bytes)
                    .map_err(failed)?;
                Ok(bytes)
            }
        }
    }
}

struct Signer(Arc<Parsed>);

impl signature::Signer<Vec<u8>> for Signer {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        self.0.sign(message)
    }
}

impl JwtSigner for Signer {
    fn algorithm(&self) -> Algorithm {
        match self.0.0 {
            Pair::Es256(_) => Algorithm::ES256,
            Pair::Rs256(_) => Algorithm::RS256,
        }
    }
}

fn signer_factory(alg: &Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>, Error> {
    let parsed = std::str::from_utf8(key.as_bytes())
        .ok()
        .and_then(|kid| KEYS.load().get(kid).and_then(Weak::upgrade));
    match parsed {
        Some(parsed) => {
            let signer = Signer(parsed);
            if signer.algorithm() != *alg {
                return Err(ErrorKind::InvalidAlgorithm.into());
            }
            Ok(Box::new(signer))
        }
        // Not one of ours: keys by value, as in tests of other parties.
        None => (aws_lc::DEFAULT_PROVIDER.signer_factory)(alg, key),
    }
}
