//! A cache of tokens whose signature has been verified, so that verifying one of them again costs a
//! hash instead of a signature check.
//!
//! The cache stores only facts about a token that never change: its claims, and that it was signed
//! by a certain key. Time, revocation and the needs of the request are checked each time, and the
//! key must still be among the issuer's keys. The cache has a fixed size and uses no locks. A hash
//! selects a row of four slots, and each slot is swapped as a whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::{ArcSwapOption, Guard};
use aws_lc_rs::digest;

use crate::key::KeyFingerprint;
use crate::token_digests::TokenDigests;
use crate::{Claims, Digest};

/// Number of slots per row.
const WAYS: usize = 4;
/// Maximum length of a cached token, in bytes. The server's tokens have about 1 kB.
const MAX_BYTES: usize = 4096;

pub(crate) const DEFAULT_CAPACITY: usize = 8192;

/// A token with a valid signature and well-formed claims. It may have expired, have been revoked,
/// or not meet the needs of the request.
#[derive(Clone)]
pub(crate) struct VerifiedToken {
    pub(crate) kid: String,
    pub(crate) key: KeyFingerprint,
    /// Digest of the revocation record that would revoke the key.
    pub(crate) key_digest: Digest,
    pub(crate) claims: Claims,
    pub(crate) digests: TokenDigests,
}

/// The content of a slot.
pub(crate) struct CachedToken {
    /// SHA-256 of the whole token, including the signature.
    hash: [u8; 32],
    pub(crate) token: VerifiedToken,
}

/// A lock-free cache of verified tokens.
pub(crate) struct TokenCache {
    slots: Box<[ArcSwapOption<CachedToken>]>,
    /// Counts insertions. Selects the slot to overwrite in a full row, and the row to sweep next.
    insertions: AtomicUsize,
}

/// The entry of one token, which may be vacant.
pub(crate) struct CacheEntry<'a> {
    cache: &'a TokenCache,
    hash: [u8; 32],
}

impl TokenCache {
    /// Creates a cache for about `tokens` tokens, or a disabled cache if it is 0. There are two to
    /// four times as many slots, so that few tokens find their row full.
    pub(crate) fn with_capacity(tokens: usize) -> Self {
        let slots = match tokens {
            0 => 0,
            tokens => (2 * tokens).max(WAYS).next_power_of_two(),
        };
        Self {
            slots: (0..slots).map(|_| ArcSwapOption::empty()).collect(),
            insertions: AtomicUsize::new(0),
        }
    }

    /// Returns the entry of a token. Returns `None` if the token is too long or the cache is
    /// disabled.
    pub(crate) fn entry(&self, token: &str) -> Option<CacheEntry<'_>> {
        if self.slots.is_empty() || token.len() > MAX_BYTES {
            return None;
        }
        let digest = digest::digest(&digest::SHA256, token.as_bytes());
        let hash = digest.as_ref().try_into().ok()?;
        Some(CacheEntry { cache: self, hash })
    }

    fn row(&self, number: usize) -> &[ArcSwapOption<CachedToken>] {
        let rows = self.slots.len() / WAYS;
        let first = (number % rows) * WAYS;
        &self.slots[first..first + WAYS]
    }

    /// Returns the number of cached tokens, including expired ones.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.slots
            .iter()
            .filter(|slot| slot.load().is_some())
            .count()
    }
}

impl CacheEntry<'_> {
    /// Returns the cached token, if there is one.
    pub(crate) fn get(&self) -> Option<Guard<Option<Arc<CachedToken>>>> {
        let slots = self.slots().iter();
        slots
            .map(ArcSwapOption::load)
            .find(|slot| slot.as_ref().is_some_and(|cached| cached.hash == self.hash))
    }

    /// Caches the token. Replaces a token that has expired by `now`, if there is one, and removes
    /// the expired tokens of one other row, so that unused tokens do not accumulate.
    pub(crate) fn insert(&self, token: VerifiedToken, now: u64) {
        let number = self.cache.insertions.fetch_add(1, Ordering::Relaxed);
        let is_expired = |slot: &ArcSwapOption<CachedToken>| {
            let cached = slot.load();
            cached
                .as_ref()
                .is_some_and(|cached| cached.token.claims.exp <= now)
        };
        let swept_row = self.cache.row(number).iter();
        for slot in swept_row.filter(|slot| is_expired(slot)) {
            slot.store(None);
        }
        let slots = self.slots();
        let is_free =
            |slot: &&ArcSwapOption<CachedToken>| slot.load().is_none() || is_expired(slot);
        let slot = slots.iter().find(is_free).unwrap_or(&slots[number % WAYS]);
        slot.store(Some(Arc::new(CachedToken {
            hash: self.hash,
            token,
        })));
    }

    /// Removes the token from the cache.
    pub(crate) fn remove(&self) {
        for slot in self.slots() {
            if slot
                .load()
                .as_ref()
                .is_some_and(|cached| cached.hash == self.hash)
            {
                slot.store(None);
            }
        }
    }

    fn slots(&self) -> &[ArcSwapOption<CachedToken>] {
        let number = u64::from_be_bytes(std::array::from_fn(|at| self.hash[at]));
        // The remaining bits of a truncated hash are just as random.
        #[allow(clippy::cast_possible_truncation)]
        self.cache.row(number as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Jwk, Key, Kind};

    fn claims(exp: u64) -> Claims {
        let json = format!(
            r#"{{"iss":"i","sub":"u","aud":"a","client_id":"c","iat":1,"exp":{exp},"jti":"j","rev":"1.1"}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    /// Returns the key of RFC 7515 §A.3.
    fn key() -> KeyFingerprint {
        let json = r#"{"kty":"EC","use":"sig","alg":"ES256","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
        let jwk: Jwk = serde_json::from_str(json).unwrap();
        Key::parse(&jwk).unwrap().fingerprint()
    }

    fn insert(cache: &TokenCache, token: &str, exp: u64, now: u64) {
        let entry = cache.entry(token).unwrap();
        let claims = claims(exp);
        let token = VerifiedToken {
            kid: "k".into(),
            key: key(),
            key_digest: Digest::of(Kind::Key, "k"),
            digests: TokenDigests::from_claims(&claims),
            claims,
        };
        entry.insert(token, now);
    }

    fn contains(cache: &TokenCache, token: &str) -> bool {
        cache.entry(token).unwrap().get().is_some()
    }

    #[test]
    fn cache_size_is_bounded() {
        let cache = TokenCache::with_capacity(100);
        assert_eq!(cache.slots.len(), 256);
        for number in 0..1000 {
            let token = format!("token {number}");
            insert(&cache, &token, 100, 10);
            assert!(contains(&cache, &token), "the newest token is cached");
        }
        assert!((200..=256).contains(&cache.len()), "{}", cache.len());
    }

    #[test]
    fn expired_tokens_are_removed_without_lookup() {
        let cache = TokenCache::with_capacity(64);
        for number in 0..40 {
            insert(&cache, &format!("old {number}"), 100, 10);
        }
        // Each insertion sweeps one row.
        for number in 0..32 {
            insert(&cache, &format!("new {number}"), 300, 100);
        }
        for number in 0..40 {
            assert!(!contains(&cache, &format!("old {number}")));
        }
    }

    #[test]
    fn large_tokens_are_not_cached() {
        let cache = TokenCache::with_capacity(100);
        assert!(cache.entry(&"t".repeat(MAX_BYTES)).is_some());
        assert!(cache.entry(&"t".repeat(MAX_BYTES + 1)).is_none());
        assert!(TokenCache::with_capacity(0).entry("t").is_none());
    }

    #[test]
    fn removed_tokens_are_not_cached() {
        let cache = TokenCache::with_capacity(100);
        insert(&cache, "a", 100, 10);
        insert(&cache, "b", 100, 10);
        cache.entry("a").unwrap().remove();
        assert!(!contains(&cache, "a") && contains(&cache, "b"));
    }
}
