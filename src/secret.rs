//! Random secrets, their prefixes, their hashes, and constant-time equality. This is the only module that reads the
//! randomness of the system.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use aws_lc_rs::{constant_time, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::rngs::StdRng;
use rand::{CryptoRng, RngCore, SeedableRng};
use zeroize::Zeroizing;

/// A source of randomness: the system, or a seed in tests.
#[derive(Clone)]
pub struct Entropy(Source);

#[derive(Clone)]
enum Source {
    System,
    Seeded(Arc<Mutex<StdRng>>),
}

impl Entropy {
    /// Returns the generator of the operating system.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// Returns a generator with the same sequence in each run, for tests.
    pub fn seeded(seed: u64) -> Self {
        Self(Source::Seeded(Arc::new(Mutex::new(StdRng::seed_from_u64(
            seed,
        )))))
    }

    /// Returns `N` random bytes.
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.clone().fill_bytes(&mut bytes);
        bytes
    }
}

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entropy")
    }
}

impl RngCore for Entropy {
    fn next_u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    fn next_u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }

    fn fill_bytes(&mut self, dest: &mut [u8]) {
        match &self.0 {
            // Weak randomness is worse than an abort, so a request without randomness must not continue.
            #[allow(clippy::expect_used)]
            Source::System => SystemRandom::new()
                .fill(dest)
                .expect("the operating system gives random bytes"),
            Source::Seeded(rng) => rng
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .fill_bytes(dest),
        }
    }

    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), rand::Error> {
        self.fill_bytes(dest);
        Ok(())
    }
}

impl CryptoRng for Entropy {}

/// SHA-256 of a secret. The database stores it instead of the secret.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Hash(Vec<u8>);

impl Hash {
    /// Hashes the text of a secret.
    pub fn of(secret: &str) -> Self {
        Self(sha256(secret.as_bytes()).to_vec())
    }

    /// Creates a hash from stored bytes.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// Returns the 32 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns whether both are equal, in constant time.
    pub fn matches(&self, other: &Hash) -> bool {
        equal(&self.0, &other.0)
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hash")
    }
}

/// Returns the SHA-256 digest.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

/// Returns whether two byte strings are equal, in constant time.
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(a, b).is_ok()
}

/// Encodes bytes as base64url without padding (RFC 4648 §5).
pub fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Decodes strict base64url without padding. Returns `None` for anything else.
pub fn from_base64url(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// Prefix of authorization codes.
const CODE: &str = "pcl_ac_";
/// Prefix of refresh tokens.
pub const REFRESH_PREFIX: &str = "pcl_rt_";

/// A secret that this server issues once and stores only as a [`Hash`]. `Debug` does not show it.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Creates a secret from a received text.
    pub fn from_text(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// Creates an authorization code: `pcl_ac_` and 256 random bits.
    pub fn code(entropy: &Entropy) -> Self {
        Self::from_text(format!("{CODE}{}", base64url(&entropy.bytes::<32>())))
    }

    /// Returns whether it has the prefix of authorization codes.
    pub fn is_code(&self) -> bool {
        self.0.starts_with(CODE)
    }

    /// Returns whether it has the prefix of refresh tokens.
    pub fn is_refresh_token(&self) -> bool {
        self.0.starts_with(REFRESH_PREFIX)
    }

    /// Creates a client secret: `pcl_sec_`, 256 random bits and a CRC-32, with which secret scanners avoid false
    /// positives.
    pub fn client_secret(entropy: &Entropy) -> Self {
        let random = entropy.bytes::<32>();
        let mut bytes = random.to_vec();
        bytes.extend_from_slice(&crc32(&random).to_be_bytes());
        Self::from_text(format!("pcl_sec_{}", base62(&bytes)))
    }

    /// Creates the value of a cookie, a link or a form nonce: 256 random bits.
    pub fn opaque(entropy: &Entropy) -> Self {
        Self::from_text(base64url(&entropy.bytes::<32>()))
    }

    /// Creates a password that is easy to type: four groups of five letters and digits, about 99 bits.
    pub fn readable(entropy: &Entropy) -> Self {
        const ALPHABET: &[u8; 32] = b"abcdefghjkmnpqrstuvwxyz23456789x";
        let groups: Vec<String> = (0..4)
            .map(|_| {
                entropy
                    .bytes::<5>()
                    .iter()
                    .map(|b| char::from(ALPHABET[usize::from(b & 31)]))
                    .collect()
            })
            .collect();
        Self::from_text(groups.join("-"))
    }

    /// Returns the text, to issue or compare it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns the hash, which the database stores.
    pub fn hash(&self) -> Hash {
        Hash::of(&self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Returns the CRC-32 (IEEE 802.3). It runs once per created secret, so it needs no table.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & 0u32.wrapping_sub(crc & 1))
        })
    })
}

/// Encodes bytes in base 62 as one big-endian number, padded to the maximum width.
fn base62(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let width = (bytes.len() * 8 * 1000).div_ceil(5954); // log2(62) = 5.954…
    let mut number = bytes.to_vec();
    let mut digits = vec![b'0'; width];
    for digit in digits.iter_mut().rev() {
        let mut rest = 0u32;
        for byte in &mut number {
            let value = rest * 256 + u32::from(*byte);
            *byte = (value / 62) as u8;
            rest = value % 62;
        }
        *digit = DIGITS[rest as usize];
    }
    digits.into_iter().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_and_base62_match_known_values() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
        assert_eq!(base62(&[0]), "00");
        assert_eq!(base62(&[61]), "0z");
        assert_eq!(base62(&[62]), "10");
        assert_eq!(base62(&[255; 36]).len(), 49);
    }

    #[test]
    fn secrets_have_prefixes_and_are_hidden_in_debug() {
        let entropy = Entropy::seeded(1);
        assert!(Secret::code(&entropy).expose().starts_with("pcl_ac_"));
        let secret = Secret::client_secret(&entropy);
        assert!(secret.expose().starts_with("pcl_sec_"));
        assert_eq!(format!("{secret:?} {:?}", secret.hash()), "Secret Hash");
    }

    #[test]
    fn seeded_entropy_repeats_and_system_entropy_does_not() {
        assert_eq!(Entropy::seeded(7).bytes::<16>(), Entropy::seeded(7).bytes());
        assert_ne!(
            Entropy::system().bytes::<16>(),
            Entropy::system().bytes::<16>()
        );
    }
}
