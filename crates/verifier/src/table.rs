//! A hash table of revocation records, with one writer at a time and any number of readers that
//! take no locks.
//!
//! The first byte of a digest selects one of 256 shards, each of which is an open-addressing table
//! of atomics. A record is inserted in place while others read. A shard that is full, or has many
//! expired records, is rebuilt as a copy and swapped, so a rebuild needs the extra memory of only
//! one shard.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use crate::token_digests::TokenDigests;
use crate::{Digest, Record, Rev};

/// Maximum number of records in a table.
pub(crate) const MAX_RECORDS: usize = 10_000_000;
/// How long records are kept after `expires`, in seconds. The `expires` of a record allows for one
/// minute, but tokens may be accepted for longer: up to 60 s of leeway at `exp`, plus 30 s by which
/// the clocks may differ.
const RETENTION_SECS: u64 = 60;

const SHARDS: usize = 256;
/// Number of slots of the empty shard that all shards start as. All others have more.
const EMPTY_SLOTS: usize = 1;
/// Minimum number of slots of a shard that is not empty.
const MIN_SLOTS: usize = 16;

/// Error of an insertion into a table that has no room for another record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TableFullError;

/// The table of all records.
pub(crate) struct Table {
    shards: Box<[ArcSwap<Shard>]>,
    len: AtomicUsize,
    max_len: usize,
    /// Held by the writer. The value is the number of the shard that was swept last.
    writer: Mutex<usize>,
}

/// The records whose digests begin with one value of the first byte.
struct Shard {
    /// First half of each digest, 0 if the slot is free.
    tags: Box<[AtomicU64]>,
    /// Second half of each digest, and the packed value.
    rest: Box<[(AtomicU64, AtomicU64)]>,
    used: AtomicUsize,
}

/// A digest, split into the parts that the table uses.
#[derive(Clone, Copy)]
struct SlotKey {
    shard: usize,
    tag: u64,
    rest: u64,
}

impl From<Digest> for SlotKey {
    fn from(digest: Digest) -> Self {
        let half = |from: usize| u64::from_be_bytes(std::array::from_fn(|at| digest.0[from + at]));
        Self {
            shard: usize::from(digest.0[0]),
            // 0 marks a free slot, so it is replaced by 1. The rest still distinguishes digests
            // with the tags 0 and 1, except with a probability of 2^-64.
            tag: half(0).max(1),
            rest: half(8),
        }
    }
}

/// Packs `floor` and `expires` into one value, so that readers always see a consistent pair.
fn pack(floor: u32, expires: u32) -> u64 {
    u64::from(floor) << 32 | u64::from(expires)
}

fn floor(value: u64) -> u64 {
    value >> 32
}

fn expires(value: u64) -> u64 {
    value & u64::from(u32::MAX)
}

/// Merges two values of one digest: the higher `floor` and the later `expires`.
fn merge(one: u64, other: u64) -> u64 {
    floor(one).max(floor(other)) << 32 | expires(one).max(expires(other))
}

fn is_expired(value: u64, now: u64) -> bool {
    expires(value) + RETENTION_SECS < now
}

impl Table {
    pub(crate) fn new() -> Self {
        Self::with_capacity(MAX_RECORDS)
    }

    fn with_capacity(max_len: usize) -> Self {
        let empty = Arc::new(Shard::with_slots(EMPTY_SLOTS));
        Self {
            shards: (0..SHARDS).map(|_| ArcSwap::new(empty.clone())).collect(),
            len: AtomicUsize::new(0),
            max_len,
            writer: Mutex::new(0),
        }
    }

    /// Returns whether there is a record with this digest, whatever its `floor`.
    pub(crate) fn contains(&self, digest: Digest) -> bool {
        self.find(digest).is_some()
    }

    /// Returns whether a record revokes a token with these digests and this `rev`, signed by the
    /// key with the digest `key`.
    pub(crate) fn revokes(&self, key: Digest, token: &TokenDigests, rev: Rev) -> bool {
        let is_below = |digest, epoch| self.find(digest).is_some_and(|value| epoch < floor(value));
        self.contains(token.token)
            || self.contains(key)
            || token.grant.is_some_and(|grant| self.contains(grant))
            || token.session.is_some_and(|session| self.contains(session))
            || rev
                .user_epoch
                .is_some_and(|epoch| is_below(token.user, epoch))
            || is_below(token.client, rev.client_epoch)
    }

    /// Inserts records. If there is already a record with the same digest, the higher `floor` and
    /// the later `expires` are kept. If the table is full, records that have expired by `now` are
    /// removed.
    ///
    /// # Errors
    ///
    /// [`TableFullError`] if the table is still full. The preceding records have been inserted.
    pub(crate) fn insert(&self, records: &[Record], now: u64) -> Result<(), TableFullError> {
        let _writer = self.lock_writer();
        for record in records {
            self.insert_one(record, now)?;
        }
        Ok(())
    }

    /// Checks the next shard, and rebuilds it if more than a quarter of its records have expired by
    /// `now`.
    pub(crate) fn sweep(&self, now: u64) {
        let mut number = self.lock_writer();
        *number = (*number + 1) % SHARDS;
        let shard = self.shards[*number].load_full();
        let expired = shard
            .entries()
            .filter(|(_, value)| is_expired(*value, now))
            .count();
        if expired * 4 > shard.used.load(Ordering::Relaxed) {
            self.rebuild(*number, &shard, now);
        }
    }

    /// Returns the number of records, including expired ones that have not been removed yet.
    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Returns the memory that the records take, in bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        let slots: usize = self
            .shards
            .iter()
            .map(|shard| shard.load().tags.len())
            .sum();
        slots * 24
    }

    fn find(&self, digest: Digest) -> Option<u64> {
        let key = SlotKey::from(digest);
        let shard = self.shards[key.shard].load();
        shard.find(key).map(|slot| slot.load(Ordering::Acquire))
    }

    fn insert_one(&self, record: &Record, now: u64) -> Result<(), TableFullError> {
        let key = SlotKey::from(record.digest);
        let value = pack(record.floor, record.expires);
        let mut shard = self.shards[key.shard].load_full();
        if let Some(slot) = shard.find(key) {
            slot.store(
                merge(slot.load(Ordering::Relaxed), value),
                Ordering::Release,
            );
            return Ok(());
        }
        if self.len() >= self.max_len {
            self.sweep_all(now);
            if self.len() >= self.max_len {
                return Err(TableFullError);
            }
            shard = self.shards[key.shard].load_full();
        }
        if shard.is_full() {
            shard = self.rebuild(key.shard, &shard, now);
        }
        shard.insert(key, value);
        self.len.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn sweep_all(&self, now: u64) {
        for number in 0..SHARDS {
            let shard = self.shards[number].load_full();
            if shard.entries().any(|(_, value)| is_expired(value, now)) {
                self.rebuild(number, &shard, now);
            }
        }
    }

    /// Replaces a shard with a new one that has the unexpired records and free slots.
    fn rebuild(&self, number: usize, old: &Shard, now: u64) -> Arc<Shard> {
        let live: Vec<_> = old
            .entries()
            .filter(|(_, value)| !is_expired(*value, now))
            .collect();
        let slots = ((live.len() + 1) * 8 / 5).max(MIN_SLOTS);
        let new = Arc::new(Shard::with_slots(slots));
        for (key, value) in &live {
            new.insert(*key, *value);
        }
        self.shards[number].store(new.clone());
        let removed = old.used.load(Ordering::Relaxed) - live.len();
        self.len.fetch_sub(removed, Ordering::Relaxed);
        new
    }

    fn lock_writer(&self) -> std::sync::MutexGuard<'_, usize> {
        // Poisoning is ignored: the records that a panicked writer has inserted are valid.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    fn with_slots(slots: usize) -> Self {
        Self {
            tags: (0..slots).map(|_| AtomicU64::new(0)).collect(),
            rest: (0..slots).map(|_| Default::default()).collect(),
            used: AtomicUsize::new(0),
        }
    }

    /// Returns whether another record would fill more than four fifths of the slots, beyond which
    /// searches become long. The shared empty shard is always full.
    fn is_full(&self) -> bool {
        (self.used.load(Ordering::Relaxed) + 1) * 5 > self.tags.len() * 4
    }

    /// Returns all slots in the order in which they are searched for a key. The search ends at the
    /// first free slot.
    fn search(&self, key: SlotKey) -> impl Iterator<Item = usize> {
        let slots = self.tags.len();
        // The second half of the digest selects the slot, because the first half selects the shard.
        #[allow(
            clippy::cast_possible_truncation,
            reason = "less than the number of slots"
        )]
        let first = ((u128::from(key.rest) * slots as u128) >> 64) as usize;
        (first..slots).chain(0..first)
    }

    fn find(&self, key: SlotKey) -> Option<&AtomicU64> {
        for slot in self.search(key) {
            // Acquire pairs with the release in `insert`: a reader that sees the tag also sees the
            // rest and the value.
            match self.tags[slot].load(Ordering::Acquire) {
                0 => return None,
                tag if tag == key.tag => {
                    let (rest, value) = &self.rest[slot];
                    if rest.load(Ordering::Relaxed) == key.rest {
                        return Some(value);
                    }
                }
                _ => {}
            }
        }
        None
    }

    /// Inserts a key that is not in the shard. Only one writer may call this at a time.
    fn insert(&self, key: SlotKey, value: u64) {
        let is_free = |slot: &usize| self.tags[*slot].load(Ordering::Relaxed) == 0;
        let Some(slot) = self.search(key).find(is_free) else {
            // Unreachable, because callers check `is_full` first or allocate enough slots.
            return;
        };
        self.rest[slot].0.store(key.rest, Ordering::Relaxed);
        self.rest[slot].1.store(value, Ordering::Relaxed);
        self.tags[slot].store(key.tag, Ordering::Release);
        self.used.fetch_add(1, Ordering::Relaxed);
    }

    fn entries(&self) -> impl Iterator<Item = (SlotKey, u64)> {
        self.tags
            .iter()
            .zip(&self.rest)
            .filter_map(|(tag, (rest, value))| {
                let tag = tag.load(Ordering::Relaxed);
                let key = SlotKey {
                    shard: 0,
                    tag,
                    rest: rest.load(Ordering::Relaxed),
                };
                (tag != 0).then(|| (key, value.load(Ordering::Relaxed)))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Claims, Kind};

    const NOW: u64 = 1_800_000_000;

    fn record(kind: Kind, value: &str, floor: u32) -> Record {
        Record::new(kind, value, floor, 1_800_000_300)
    }

    fn numbered(number: usize) -> Record {
        record(Kind::Token, &number.to_string(), 0)
    }

    fn claims() -> Claims {
        let json = format!(
            r#"{{"iss":"i","sub":"alice","aud":"a","client_id":"shop","iat":{NOW},"exp":{},"jti":"j","rev":"1.5.7","grant_id":"g","sid":"s"}}"#,
            NOW + 300
        );
        serde_json::from_str(&json).unwrap()
    }

    fn is_revoked(records: &[Record], claims: &Claims) -> bool {
        let table = Table::new();
        table.insert(records, NOW).unwrap();
        let key = Digest::of(Kind::Key, "k");
        table.revokes(key, &TokenDigests::from_claims(claims), claims.rev)
    }

    #[test]
    fn each_kind_revokes_only_matching_tokens() {
        for (record, revoked) in [
            (record(Kind::Token, "j", 0), true),
            (record(Kind::Session, "s", 0), true),
            (record(Kind::Grant, "g", 0), true),
            (record(Kind::Key, "k", 0), true),
            (record(Kind::User, "alice", 8), true),
            (record(Kind::User, "alice", 7), false),
            (record(Kind::Client, "shop", 6), true),
            (record(Kind::Client, "shop", 5), false),
            (record(Kind::User, "shop", 99), false),
            (record(Kind::Client, "alice", 99), false),
            (record(Kind::Token, "s", 0), false),
            (record(Kind::Session, "g", 0), false),
        ] {
            assert_eq!(is_revoked(&[record], &claims()), revoked, "{record:?}");
        }
        assert!(!is_revoked(&[], &claims()));
    }

    #[test]
    fn client_token_is_not_revoked_by_user_record() {
        let service = Claims {
            sub: "shop".into(),
            rev: "1.5".parse().unwrap(),
            sid: None,
            grant_id: None,
            ..claims()
        };
        assert!(!is_revoked(&[record(Kind::User, "shop", 99)], &service));
        assert!(is_revoked(&[record(Kind::Client, "shop", 6)], &service));
    }

    #[test]
    fn higher_floor_and_later_expiry_are_kept() {
        let table = Table::new();
        let user = Digest::of(Kind::User, "alice");
        for (floor, expires) in [(3, 900), (9, 100), (5, 1000), (5, 1000)] {
            let record = Record::new(Kind::User, "alice", floor, expires);
            table.insert(&[record], 0).unwrap();
        }
        assert_eq!(table.find(user), Some(pack(9, 1000)));
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn hundred_thousand_records_are_found_and_no_others() {
        let table = Table::new();
        let records: Vec<_> = (0..100_000).map(numbered).collect();
        for chunk in records.chunks(1000) {
            table.insert(chunk, NOW).unwrap();
        }
        assert_eq!(table.len(), records.len());
        assert!(records.iter().all(|record| table.contains(record.digest)));
        let others = 100_000..200_000;
        assert!(
            others
                .into_iter()
                .all(|n| !table.contains(numbered(n).digest))
        );
        // 24 bytes per slot, at a load between a half and four fifths.
        let bytes_per_record = table.memory_bytes() / table.len();
        assert!((30..48).contains(&bytes_per_record), "{bytes_per_record}");
    }

    #[test]
    fn zero_digest_is_found() {
        let table = Table::new();
        let zero = Record {
            digest: Digest([0; 16]),
            ..numbered(1)
        };
        let almost = Digest(std::array::from_fn(|at| u8::from(at == 15)));
        assert!(!table.contains(zero.digest));
        table.insert(&[zero], NOW).unwrap();
        assert!(table.contains(zero.digest) && !table.contains(almost));
    }

    #[test]
    fn expired_records_are_removed_after_a_minute() {
        let table = Table::new();
        let (short, long) = (
            Record::new(Kind::Token, "short", 0, 1000),
            Record::new(Kind::Token, "long", 0, 2000),
        );
        table.insert(&[short, long], 0).unwrap();
        let sweep = |now| (0..SHARDS).for_each(|_| table.sweep(now));
        sweep(1060);
        assert_eq!(table.len(), 2);
        sweep(1061);
        assert_eq!(table.len(), 1);
        assert!(table.contains(long.digest) && !table.contains(short.digest));
    }

    #[test]
    fn full_table_rejects_records_and_keeps_existing() {
        let table = Table::with_capacity(1000);
        let records: Vec<_> = (0..1000).map(numbered).collect();
        table.insert(&records, NOW).unwrap();
        assert_eq!(table.insert(&[numbered(1000)], NOW), Err(TableFullError));
        table.insert(&[numbered(7)], NOW).unwrap();
        assert!(records.iter().all(|record| table.contains(record.digest)));
        // The records have expired by then.
        let later = NOW + 361;
        table.insert(&[numbered(1000)], later).unwrap();
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn readers_find_records_while_shards_are_rebuilt() {
        let table = Table::new();
        let done = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut turn = 0;
                    while done.load(Ordering::Acquire) < 20_000 {
                        let known = done.load(Ordering::Acquire);
                        turn += 1;
                        if known > 0 {
                            let number = (turn * 7919) % known;
                            assert!(table.contains(numbered(number).digest), "{number}");
                        }
                        assert!(!table.contains(numbered(1_000_000 + turn).digest));
                    }
                });
            }
            for number in 0..20_000 {
                table.insert(&[numbered(number)], NOW).unwrap();
                done.store(number + 1, Ordering::Release);
            }
        });
    }
}
