//! A crypto provider for `jsonwebtoken`. The default provider parses the private key at every signature, which costs
//! more than the signature itself. This one finds the parsed key by its kid; everything else is the default aws-lc
//! provider. Other kinds of signers can be added in `signer_factory`.

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

/// A parsed private key.
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

/// Installs this provider for the process. Further calls have no effect.
pub fn install() {
    // It returns an error if a provider is already installed.
    let _ = PROVIDER.install_default();
}

impl Parsed {
    /// Parses a private key (PKCS#8 for ES256, PKCS#1 for RS256). `None` if it is not such a key.
    pub fn new(alg: Alg, private: &[u8]) -> Option<Self> {
        Some(Self(match alg {
            Alg::ES256 => Pair::Es256(
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, private).ok()?,
            ),
            Alg::RS256 => Pair::Rs256(RsaKeyPair::from_der(private).ok()?),
        }))
    }

    /// Registers the key under `kid` until the last `Arc` is dropped. The caller has checked that it matches the public
    /// key, so a key that is already registered is the same one. It stays registered, because its owner still signs
    /// with it.
    pub fn registered_as(self, kid: &str) -> Arc<Self> {
        let new = Arc::new(self);
        let mut parsed = Arc::clone(&new);
        KEYS.rcu(|keys| {
            let mut keys: HashMap<_, _> = keys
                .iter()
                .filter(|(_, key)| key.strong_count() > 0)
                .map(|(kid, key)| (kid.clone(), Weak::clone(key)))
                .collect();
            parsed = match keys.get(kid).and_then(Weak::upgrade) {
                Some(registered) => registered,
                None => Arc::clone(&new),
            };
            keys.insert(kid.to_owned(), Arc::downgrade(&parsed));
            keys
        });
        parsed
    }

    /// Returns the key for `jsonwebtoken`, which contains the kid in the place of the key.
    pub fn encoding_key(&self, kid: &str) -> EncodingKey {
        match self.0 {
            Pair::Es256(_) => EncodingKey::from_ec_der(kid.as_bytes()),
            Pair::Rs256(_) => EncodingKey::from_rsa_der(kid.as_bytes()),
        }
    }

    /// Returns whether the public key belongs to this private key.
    pub fn matches(&self, public: &Jwk) -> bool {
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

    /// Signs a test message and verifies it with `public`. `None` if the two keys do not match.
    pub fn self_test(&self, public: &Jwk) -> Option<()> {
        const MESSAGE: &[u8] = b"portcullis";
        let signature = base64url(&self.sign(MESSAGE).ok()?);
        let (alg, key) = decoding_key(public)?;
        let verified = jsonwebtoken::crypto::verify(&signature, MESSAGE, &key, alg);
        verified.is_ok_and(|valid| valid).then_some(())
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
        // The key is not registered: it contains the key itself, as in tests that sign as another party.
        None => (aws_lc::DEFAULT_PROVIDER.signer_factory)(alg, key),
    }
}
