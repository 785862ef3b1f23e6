//! A public key and the algorithm that it may be used with (RFC 7518 §6).

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::jwks::without_leading_zeros;
use crate::{Algorithm, Digest, Jwk, Kind};

/// A parsed and validated public key.
#[derive(Clone)]
pub struct Key {
    algorithm: Algorithm,
    public: Arc<ParsedPublicKey>,
    fingerprint: KeyFingerprint,
    /// Digest of the revocation record that would revoke the key.
    revocation_digest: Digest,
}

/// SHA-256 of the algorithm and the public key. It does not depend on the `kid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyFingerprint([u8; 32]);

impl KeyFingerprint {
    #[cfg(test)]
    pub(crate) const ZERO: Self = Self([0; 32]);

    fn new(algorithm: Algorithm, public: &ParsedPublicKey) -> Option<Self> {
        let mut hash = Context::new(&SHA256);
        hash.update(algorithm.name().as_bytes());
        hash.update(public.as_ref());
        hash.finish().as_ref().try_into().ok().map(Self)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

impl Key {
    /// Returns the only algorithm that the key may be used with (RFC 8725 §3.1).
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the fingerprint, which distinguishes successive keys that have the same `kid`.
    pub(crate) fn fingerprint(&self) -> KeyFingerprint {
        self.fingerprint
    }

    pub(crate) fn revocation_digest(&self) -> Digest {
        self.revocation_digest
    }

    /// Returns whether a signature is valid (RFC 7515 §5.2). `encoded` is the third part of a JWS,
    /// and `message` is the first two parts including the dot between them. Returns `None` if
    /// `encoded` is not strict base64url.
    pub(crate) fn verify_signature(&self, encoded: &str, message: &[u8]) -> Option<bool> {
        let signature = URL_SAFE_NO_PAD.decode(encoded).ok()?;
        Some(self.public.verify_sig(message, &signature).is_ok())
    }

    /// Parses a key. Returns `None` if it is not usable; see [`Keys::parse`](crate::Keys::parse).
    pub(crate) fn parse(jwk: &Jwk) -> Option<Self> {
        if jwk.use_.as_deref() != Some("sig") {
            return None;
        }
        match Algorithm::from_name(jwk.alg.as_deref()?)? {
            Algorithm::ES256 => Self::es256(jwk),
            Algorithm::RS256 => Self::rs256(jwk),
        }
    }

    /// Parses a P-256 key (RFC 7518 §6.2.1).
    fn es256(jwk: &Jwk) -> Option<Self> {
        if jwk.kty != "EC" || jwk.crv.as_deref() != Some("P-256") {
            return None;
        }
        let x: [u8; 32] = decode_number(&jwk.x)?.try_into().ok()?;
        let y: [u8; 32] = decode_number(&jwk.y)?.try_into().ok()?;
        let point = [&[0x04], x.as_slice(), y.as_slice()].concat();
        let public = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).ok()?;
        Self::new(Algorithm::ES256, public, jwk)
    }

    /// Parses an RSA key (RFC 7518 §6.3.1) and checks its size (§3.3).
    fn rs256(jwk: &Jwk) -> Option<Self> {
        if jwk.kty != "RSA" {
            return None;
        }
        let (n, e) = (decode_number(&jwk.n)?, decode_number(&jwk.e)?);
        let (n, e) = (without_leading_zeros(&n), without_leading_zeros(&e));
        let (n_bits, e_bits) = (bit_length(n), bit_length(e));
        if !(2048..=8192).contains(&n_bits) || e_bits < 17 || e.last()? % 2 == 0 {
            return None;
        }
        let public = RsaPublicKeyComponents { n, e }
            .to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256)
            .ok()?;
        Self::new(Algorithm::RS256, public, jwk)
    }

    fn new(algorithm: Algorithm, public: ParsedPublicKey, jwk: &Jwk) -> Option<Self> {
        Some(Self {
            algorithm,
            fingerprint: KeyFingerprint::new(algorithm, &public)?,
            public: Arc::new(public),
            revocation_digest: Digest::of(Kind::Key, jwk.kid.as_deref().unwrap_or_default()),
        })
    }
}

fn decode_number(member: &Option<String>) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(member.as_deref()?).ok()
}

/// Returns the length in bits of a number without leading zero bytes.
fn bit_length(number: &[u8]) -> usize {
    number
        .first()
        .map_or(0, |first| number.len() * 8 - first.leading_zeros() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Payload of the examples in RFC 7515, Appendix A.
    const PAYLOAD: &str = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";

    /// Returns the key of RFC 7515 §A.2.
    fn rsa() -> Jwk {
        let n = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ";
        Jwk::rs256(&URL_SAFE_NO_PAD.decode(n).unwrap(), &[1, 0, 1])
    }

    /// Returns the key of RFC 7515 §A.3.
    fn ec() -> Jwk {
        let x = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU";
        let y = "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0";
        let bytes = |text| URL_SAFE_NO_PAD.decode(text).unwrap().try_into().unwrap();
        Jwk::es256(&bytes(x), &bytes(y))
    }

    fn is_usable(jwk: Jwk) -> bool {
        Key::parse(&jwk).is_some()
    }

    #[test]
    fn rfc_7515_section_a_2_signature_is_valid() {
        let message = format!("eyJhbGciOiJSUzI1NiJ9.{PAYLOAD}");
        let signature = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
        let key = Key::parse(&rsa()).unwrap();
        assert_eq!(
            key.verify_signature(signature, message.as_bytes()),
            Some(true)
        );
        assert_eq!(key.verify_signature(signature, b"another"), Some(false));
    }

    #[test]
    fn rfc_7515_section_a_3_signature_is_valid() {
        let message = format!("eyJhbGciOiJFUzI1NiJ9.{PAYLOAD}");
        let signature = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
        let key = Key::parse(&ec()).unwrap();
        assert_eq!(
            key.verify_signature(signature, message.as_bytes()),
            Some(true)
        );
        assert_eq!(key.verify_signature(signature, b"another"), Some(false));
        assert_eq!(
            key.verify_signature(&format!("{signature}=="), message.as_bytes()),
            None
        );
    }

    #[test]
    fn unusable_keys_are_skipped() {
        assert!(is_usable(ec()) && is_usable(rsa()));
        let some = |text: &str| Some(text.to_owned());
        for (why, jwk) in [
            ("no use", Jwk { use_: None, ..ec() }),
            (
                "for encryption",
                Jwk {
                    use_: some("enc"),
                    ..ec()
                },
            ),
            ("no alg", Jwk { alg: None, ..ec() }),
            (
                "another alg",
                Jwk {
                    alg: some("ES384"),
                    ..ec()
                },
            ),
            (
                "alg of another kty: RS256",
                Jwk {
                    alg: some("RS256"),
                    ..ec()
                },
            ),
            (
                "alg of another kty: ES256",
                Jwk {
                    alg: some("ES256"),
                    ..rsa()
                },
            ),
            (
                "another kty",
                Jwk {
                    kty: "OKP".into(),
                    ..ec()
                },
            ),
            (
                "another curve",
                Jwk {
                    crv: some("secp256k1"),
                    ..ec()
                },
            ),
            ("no curve", Jwk { crv: None, ..ec() }),
            ("not on the curve", Jwk { y: ec().x, ..ec() }),
            ("no y coordinate", Jwk { y: None, ..ec() }),
            (
                "short x",
                Jwk {
                    x: some("AQAB"),
                    ..ec()
                },
            ),
            ("no modulus", Jwk { n: None, ..rsa() }),
            (
                "e = 1",
                Jwk {
                    e: some("AQ"),
                    ..rsa()
                },
            ),
            (
                "e = 3",
                Jwk {
                    e: some("Aw"),
                    ..rsa()
                },
            ),
            (
                "even e",
                Jwk {
                    e: some("AQAA"),
                    ..rsa()
                },
            ),
        ] {
            assert!(!is_usable(jwk), "{why}");
        }
    }

    #[test]
    fn rsa_modulus_has_2048_to_8192_bits() {
        let modulus =
            |bytes: usize, first: u8| [&[first], vec![0xff; bytes - 1].as_slice()].concat();
        assert!(is_usable(Jwk::rs256(&modulus(256, 0x80), &[1, 0, 1])));
        assert!(!is_usable(Jwk::rs256(&modulus(256, 0x7f), &[1, 0, 1])));
        assert!(!is_usable(Jwk::rs256(&modulus(128, 0xff), &[1, 0, 1])));
        assert!(!is_usable(Jwk::rs256(&modulus(1025, 0xff), &[1, 0, 1])));
        // Leading zeros do not count towards the size.
        let n = URL_SAFE_NO_PAD.encode([vec![0; 128], modulus(128, 0xff)].concat());
        assert!(!is_usable(Jwk {
            n: Some(n),
            ..rsa()
        }));
    }
}
