//! The records in force, as the verify path asks for them: one writer, any number of readers, and
//! no lock that a reader takes.
//!
//! 256 shards by the first byte of the digest, each an open-addressing table of atomics. A record is
//! put in place while others read; a shard that is full, or full of what is over, is built anew
//! beside the old one and swapped. So the spare memory is that of one shard.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use crate::probe::Probes;
use crate::{Digest, Record, Rev};

/// A table takes no more records than this.
pub(crate) const MAX_RECORDS: usize = 10_000_000;
/// Records are kept so much longer than they say: a minute of leeway at `exp` and the 30 s by which
/// clocks may differ make more than the minute that `expires` allows.
const KEEP_SECS: u64 = 60;

const SHARDS: usize = 256;
/// Of the empty shard that all begin with; any other has more.
const EMPTY: usize = 1;
const SMALLEST: usize = 16;

/// A table that has no room for another record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

pub(crate) struct Table {
    shards: Box<[ArcSwap<Shard>]>,
    len: AtomicUsize,
    max: usize,
    /// Held by the one who writes; the shard that is looked through next.
    writer: Mutex<usize>,
}

struct Shard {
    /// First half of each digest, 0 where the slot is free.
    tags: Box<[AtomicU64]>,
    /// Second half, and what the record says.
    rest: Box<[(AtomicU64, AtomicU64)]>,
    used: AtomicUsize,
}

/// A digest as the table sees it.
#[derive(Clone, Copy)]
struct Name {
    shard: usize,
    tag: u64,
    rest: u64,
}

impl From<Digest> for Name {
    fn from(digest: Digest) -> Self {
        let half = |from: usize| u64::from_be_bytes(std::array::from_fn(|at| digest.0[from + at]));
        Self {
            shard: usize::from(digest.0[0]),
            // 0 means that a slot is free. The rest still tells these two apart, but for one in 2^64.
            tag: half(0).max(1),
            rest: half(8),
        }
    }
}

/// `floor` and `expires` in one word, so that a reader never sees one without the other.
fn word(floor: u32, expires: u32) -> u64 {
    u64::from(floor) << 32 | u64::from(expires)
}

fn floor(word: u64) -> u64 {
    word >> 32
}

fn expires(word: u64) -> u64 {
    word & u64::from(u32::MAX)
}

/// The higher `floor` and the later `expires` win.
fn merged(one: u64, other: u64) -> u64 {
    floor(one).max(floor(other)) << 32 | expires(one).max(expires(other))
}

fn is_over(word: u64, now: u64) -> bool {
    expires(word) + KEEP_SECS < now
}

impl Table {
    pub(crate) fn new() -> Self {
        Self::with_room_for(MAX_RECORDS)
    }

    fn with_room_for(max: usize) -> Self {
        let empty = Arc::new(Shard::with_slots(EMPTY));
        Self {
            shards: (0..SHARDS).map(|_| ArcSwap::new(empty.clone())).collect(),
            len: AtomicUsize::new(0),
            max,
            writer: Mutex::new(0),
        }
    }

    /// Whether a record of this digest is held, whatever its floor.
    pub(crate) fn holds(&self, digest: Digest) -> bool {
        self.find(digest).is_some()
    }

    /// Whether any record hits a token: signed by that key, with these names, begun at `rev`.
    pub(crate) fn hits(&self, key: Digest, token: &Probes, rev: Rev) -> bool {
        let below = |digest, number| self.find(digest).is_some_and(|found| number < floor(found));
        self.holds(token.token)
            || self.holds(key)
            || token.grant.is_some_and(|grant| self.holds(grant))
            || token.session.is_some_and(|session| self.holds(session))
            || rev
                .user_epoch
                .is_some_and(|number| below(token.user, number))
            || below(token.client, rev.client_epoch)
    }

    /// Puts records in force. Of two with one digest the higher `floor` and the later `expires`
    /// count. Those over by `now` make room if there is none.
    ///
    /// # Errors
    ///
    /// [`Full`]; the records before the one that had no room are in force.
    pub(crate) fn put(&self, records: &[Record], now: u64) -> Result<(), Full> {
        let _writer = self.writer();
        for record in records {
            self.put_one(record, now)?;
        }
        Ok(())
    }

    /// Looks through one shard, and drops what is over by `now` if it is worth it.
    pub(crate) fn sweep(&self, now: u64) {
        let mut turn = self.writer();
        *turn = (*turn + 1) % SHARDS;
        let shard = self.shards[*turn].load_full();
        let over = shard
            .entries()
            .filter(|(_, word)| is_over(*word, now))
            .count();
        if over * 4 > shard.used.load(Ordering::Relaxed) {
            self.rebuild(*turn, &shard, now);
        }
    }

    /// How many records are held, those over included that were not dropped yet.
    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// How much memory the records take.
    pub(crate) fn memory_bytes(&self) -> usize {
        let slots: usize = self
            .shards
            .iter()
            .map(|shard| shard.load().tags.len())
            .sum();
        slots * 24
    }

    fn find(&self, digest: Digest) -> Option<u64> {
        let name = Name::from(digest);
        let shard = self.shards[name.shard].load();
        shard.find(name).map(|slot| slot.load(Ordering::Acquire))
    }

    fn put_one(&self, record: &Record, now: u64) -> Result<(), Full> {
        let name = Name::from(record.digest);
        let said = word(record.floor, record.expires);
        let mut shard = self.shards[name.shard].load_full();
        if let Some(slot) = shard.find(name) {
            slot.store(
                merged(slot.load(Ordering::Relaxed), said),
                Ordering::Release,
            );
            return Ok(());
        }
        if self.len() >= self.max {
            self.sweep_all(now);
            if self.len() >= self.max {
                return Err(Full);
            }
            shard = self.shards[name.shard].load_full();
        }
        if shard.is_full() {
            shard = self.rebuild(name.shard, &shard, now);
        }
        shard.put(name, said);
        self.len.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn sweep_all(&self, now: u64) {
        for number in 0..SHARDS {
            let shard = self.shards[number].load_full();
            if shard.entries().any(|(_, word)| is_over(word, now)) {
                self.rebuild(number, &shard, now);
            }
        }
    }

    /// A new shard with what is not over, and some room.
    fn rebuild(&self, number: usize, old: &Shard, now: u64) -> Arc<Shard> {
        let live: Vec<_> = old
            .entries()
            .filter(|(_, word)| !is_over(*word, now))
            .collect();
        let new = Arc::new(Shard::with_slots(((live.len() + 1) * 8 / 5).max(SMALLEST)));
        for (name, word) in &live {
            new.put(*name, *word);
        }
        self.shards[number].store(new.clone());
        let dropped = old.used.load(Ordering::Relaxed) - live.len();
        self.len.fetch_sub(dropped, Ordering::Relaxed);
        new
    }

    fn writer(&self) -> std::sync::MutexGuard<'_, usize> {
        // Whatever a writer that panicked has left is in force as far as it goes.
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

    /// At four fifths: beyond, the searches become long. The empty one is shared, and always full.
    fn is_full(&self) -> bool {
        (self.used.load(Ordering::Relaxed) + 1) * 5 > self.tags.len() * 4
    }

    /// The slots that a name may lie in, in order, up to the first free one.
    fn search(&self, name: Name) -> impl Iterator<Item = usize> {
        let slots = self.tags.len();
        // The second half picks the slot, since the first has picked the shard.
        #[allow(
            clippy::cast_possible_truncation,
            reason = "less than the number of slots"
        )]
        let first = ((u128::from(name.rest) * slots as u128) >> 64) as usize;
        (first..slots).chain(0..first)
    }

    fn find(&self, name: Name) -> Option<&AtomicU64> {
        for slot in self.search(name) {
            // Acquire: whoever sees the tag sees what was put there before it.
            match self.tags[slot].load(Ordering::Acquire) {
                0 => return None,
                tag if tag == name.tag => {
                    let (rest, word) = &self.rest[slot];
                    if rest.load(Ordering::Relaxed) == name.rest {
                        return Some(word);
                    }
                }
                _ => {}
            }
        }
        None
    }

    /// For one writer, and a name that is not there.
    fn put(&self, name: Name, word: u64) {
        let free = |slot: &usize| self.tags[*slot].load(Ordering::Relaxed) == 0;
        let Some(slot) = self.search(name).find(free) else {
            // There is a free slot as long as `is_full` is asked first.
            return;
        };
        self.rest[slot].0.store(name.rest, Ordering::Relaxed);
        self.rest[slot].1.store(word, Ordering::Relaxed);
        self.tags[slot].store(name.tag, Ordering::Release);
        self.used.fetch_add(1, Ordering::Relaxed);
    }

    fn entries(&self) -> impl Iterator<Item = (Name, u64)> {
        self.tags
            .iter()
            .zip(&self.rest)
            .filter_map(|(tag, (rest, word))| {
                let tag = tag.load(Ordering::Relaxed);
                let name = Name {
                    shard: 0,
                    tag,
                    rest: rest.load(Ordering::Relaxed),
                };
                (tag != 0).then(|| (name, word.load(Ordering::Relaxed)))
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

    fn hit_by(records: &[Record], claims: &Claims) -> bool {
        let table = Table::new();
        table.put(records, NOW).unwrap();
        let key = Digest::of(Kind::Key, "k");
        table.hits(key, &Probes::of(claims), claims.rev)
    }

    #[test]
    fn each_kind_hits_what_it_names() {
        for (record, hit) in [
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
            assert_eq!(hit_by(&[record], &claims()), hit, "{record:?}");
        }
        assert!(!hit_by(&[], &claims()));
    }

    #[test]
    fn a_token_without_a_user_is_hit_by_no_cut_off_of_one() {
        let service = Claims {
            sub: "shop".into(),
            rev: "1.5".parse().unwrap(),
            sid: None,
            grant_id: None,
            ..claims()
        };
        assert!(!hit_by(&[record(Kind::User, "shop", 99)], &service));
        assert!(hit_by(&[record(Kind::Client, "shop", 6)], &service));
    }

    #[test]
    fn the_higher_floor_and_the_later_end_win() {
        let table = Table::new();
        let user = Digest::of(Kind::User, "alice");
        for (floor, expires) in [(3, 900), (9, 100), (5, 1000), (5, 1000)] {
            let record = Record::new(Kind::User, "alice", floor, expires);
            table.put(&[record], 0).unwrap();
        }
        assert_eq!(table.find(user), Some(word(9, 1000)));
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn a_hundred_thousand_are_held_and_no_others() {
        let table = Table::new();
        let records: Vec<_> = (0..100_000).map(numbered).collect();
        for chunk in records.chunks(1000) {
            table.put(chunk, NOW).unwrap();
        }
        assert_eq!(table.len(), records.len());
        assert!(records.iter().all(|record| table.holds(record.digest)));
        let others = 100_000..200_000;
        assert!(others.into_iter().all(|n| !table.holds(numbered(n).digest)));
        // 24 bytes each at a load between a half and four fifths.
        let each = table.memory_bytes() / table.len();
        assert!((30..48).contains(&each), "{each}");
    }

    #[test]
    fn digests_of_zeros_are_held_too() {
        let table = Table::new();
        let zero = Record {
            digest: Digest([0; 16]),
            ..numbered(1)
        };
        let almost = Digest(std::array::from_fn(|at| u8::from(at == 15)));
        assert!(!table.holds(zero.digest));
        table.put(&[zero], NOW).unwrap();
        assert!(table.holds(zero.digest) && !table.holds(almost));
    }

    #[test]
    fn what_is_over_goes_a_minute_later() {
        let table = Table::new();
        let (short, long) = (
            Record::new(Kind::Token, "short", 0, 1000),
            Record::new(Kind::Token, "long", 0, 2000),
        );
        table.put(&[short, long], 0).unwrap();
        let sweep = |now| (0..SHARDS).for_each(|_| table.sweep(now));
        sweep(1060);
        assert_eq!(table.len(), 2);
        sweep(1061);
        assert_eq!(table.len(), 1);
        assert!(table.holds(long.digest) && !table.holds(short.digest));
    }

    #[test]
    fn a_full_table_takes_no_more_and_loses_nothing() {
        let table = Table::with_room_for(1000);
        let records: Vec<_> = (0..1000).map(numbered).collect();
        table.put(&records, NOW).unwrap();
        assert_eq!(table.put(&[numbered(1000)], NOW), Err(Full));
        table.put(&[numbered(7)], NOW).unwrap();
        assert!(records.iter().all(|record| table.holds(record.digest)));
        // Later there is room again.
        let later = NOW + 361;
        table.put(&[numbered(1000)], later).unwrap();
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn readers_see_what_was_put_before_while_shards_are_rebuilt() {
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
                            assert!(table.holds(numbered(number).digest), "{number}");
                        }
                        assert!(!table.holds(numbered(1_000_000 + turn).digest));
                    }
                });
            }
            for number in 0..20_000 {
                table.put(&[numbered(number)], NOW).unwrap();
                done.store(number + 1, Ordering::Release);
            }
        });
    }
}
