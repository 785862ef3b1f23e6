//! Random secrets, their recognisable forms, their hashes, and constant-time equality: the only
//! module that reads the system's randomness.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use aws_lc_rs::{constant_time, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::rngs::StdRng;
use rand::{CryptoRng, RngCore, SeedableRng};
use zeroize::Zeroizing;

/// Where randomness comes from: the system, or a seed in tests.
#[derive(Clone)]
pub struct Entropy(Source);

#[derive(Clone)]
enum Source {
    System,
    Seeded(Arc<Mutex<StdRng>>),
}

impl Entropy {
    /// The operating system's generator.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// The same sequence in each run, for tests.
    pub fn seeded(seed: u64) -> Self {
        Self(Source::Seeded(Arc::new(Mutex::new(StdRng::seed_from_u64(
            seed,
        )))))
    }

    /// `N` random bytes.
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
            // Weak randomness is worse than none: a request that cannot be random must not go on.
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

/// SHA-256 of a secret: what the database keeps instead of it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Hash(Vec<u8>);

impl Hash {
    /// The hash of the secret's text.
    pub fn of(secret: &str) -> Self {
        Self(sha256(secret.as_bytes()).to_vec())
    }

    /// From stored bytes.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether both are the same, in constant time.
    pub fn matches(&self, other: &Hash) -> bool {
        equal(&self.0, &other.0)
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hash")
    }
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

/// Constant-time equality.
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(a, b).is_ok()
}

/// Base64url without padding (RFC 4648 §5).
pub fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Strict base64url without padding; `None` for anything else.
pub fn from_base64url(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// How an authorization code begins.
const CODE: &str = "pcl_ac_";
/// How a refresh token begins.
pub const REFRESH_PREFIX: &str = "pcl_rt_";

/// A secret that this server hands out once and keeps only as a [`Hash`]. `Debug` shows nothing.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes a text that arrived from outside.
    pub fn from_text(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// An authorization code: `pcl_ac_` and 256 random bits.
    pub fn code(entropy: &Entropy) -> Self {
        Self::from_text(format!("{CODE}{}", base64url(&entropy.bytes::<32>())))
    }

    /// Whether it begins as an authorization code does.
    pub fn is_code(&self) -> bool {
        self.0.starts_with(CODE)
    }

    /// Whether it begins as a refresh token does.
    pub fn is_refresh_token(&self) -> bool {
        self.0.starts_with(REFRESH_PREFIX)
    }

    /// A client secret: `pcl_sec_`, 256 random bits and a CRC-32, so that secret scanners can tell
    /// a real one from a look-alike.
    pub fn client_secret(entropy: &Entropy) -> Self {
        let random = entropy.bytes::<32>();
        let mut bytes = random.to_vec();
        bytes.extend_from_slice(&crc32(&random).to_be_bytes());
        Self::from_text(format!("pcl_sec_{}", base62(&bytes)))
    }

    /// The value of a cookie, a link or a form nonce: 256 random bits.
    pub fn opaque(entropy: &Entropy) -> Self {
        Self::from_text(base64url(&entropy.bytes::<32>()))
    }

    /// A password to be read out by a person: four groups of five letters and digits, about 99 bits.
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

    /// The text, to hand it out or to compare it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What the database keeps.
    pub fn hash(&self) -> Hash {
        Hash::of(&self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// CRC-32 (IEEE 802.3), bit by bit: it runs once per secret that is made.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & 0u32.wrapping_sub(crc & 1))
        })
    })
}

/// Base 62, big-endian, as one number padded to the full width of its bytes.
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
    fn crc_and_base62_are_the_standard_ones() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
        assert_eq!(base62(&[0]), "00");
        assert_eq!(base62(&[61]), "0z");
        assert_eq!(base62(&[62]), "10");
        assert_eq!(base62(&[255; 36]).len(), 49);
    }

    #[test]
    fn secrets_carry_their_prefix_and_show_nothing_in_debug() {
        let entropy = Entropy::seeded(1);
        assert!(Secret::code(&entropy).expose().starts_with("pcl_ac_"));
        let secret = Secret::client_secret(&entropy);
        assert!(secret.expose().starts_with("pcl_sec_"));
        assert_eq!(format!("{secret:?} {:?}", secret.hash()), "Secret Hash");
    }

    #[test]
    fn a_seed_repeats_and_the_system_does_not() {
        assert_eq!(Entropy::seeded(7).bytes::<16>(), Entropy::seeded(7).bytes());
        assert_ne!(
            Entropy::system().bytes::<16>(),
            Entropy::system().bytes::<16>()
        );
    }
}
