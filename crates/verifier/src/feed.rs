//! What a verifier knows from the revocation feed: which records are in force, up to which
//! position, and how old that news is. Frames come in, whoever fetched them; tokens are judged.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::frame::{FRAME_MAX_BYTES, FRAME_MAX_RECORDS, FRAME_VERSION};
use crate::metrics::Counters;
use crate::seen::Good;
use crate::table::Table;
use crate::token::{Form, Unverified};
use crate::{Algorithm, Clock, Digest, Frame, Keys, MaxAge, Position, Rejected};

/// How far a frame's `iat` may lie from our clock, and so how long news can be held back unseen.
const CLOCK_ERROR_SECS: u64 = 30;
const CLOCK_ERROR_US: u64 = CLOCK_ERROR_SECS * 1_000_000;

const ALGORITHMS: [Algorithm; 2] = [Algorithm::ES256, Algorithm::RS256];

/// Everything that the feed has told.
pub(crate) struct Feed {
    issuer: String,
    pub(crate) clock: Clock,
    pub(crate) counters: Arc<Counters>,
    known: ArcSwap<Known>,
    /// Frames are applied one at a time.
    writer: Mutex<()>,
    /// The longest `max_age` that the registration allows.
    allowed: AtomicU64,
    /// The longest that any request asked for, in the same form.
    asked: AtomicU64,
    /// Whether it was logged that the news is too old.
    is_stale: AtomicBool,
    position: watch::Sender<Position>,
}

/// What is known of one feed epoch.
struct Known {
    /// `None` before the first good frame.
    epoch: Option<u64>,
    seq: AtomicU64,
    table: Table,
    /// When, on the clock that counts suspend, the news was new.
    since_boot_us: AtomicU64,
    /// All that was committed before this is known. 0: nothing is.
    as_of_us: AtomicU64,
}

impl Known {
    fn nothing(epoch: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            epoch,
            seq: AtomicU64::new(0),
            table: Table::new(),
            since_boot_us: AtomicU64::new(0),
            as_of_us: AtomicU64::new(0),
        })
    }

    /// Both clocks have their say. The wall clock alone could be set back; the other alone would
    /// take a frame that was held back on its way for new.
    fn age(&self, clock: &Clock) -> Option<Duration> {
        let as_of = self.as_of_us.load(Ordering::Acquire);
        if as_of == 0 {
            return None;
        }
        let since = self.since_boot_us.load(Ordering::Relaxed);
        let by_boot = clock.boot_us().saturating_sub(since);
        let by_wall = clock
            .wall_us()
            .saturating_sub(as_of)
            .saturating_sub(CLOCK_ERROR_US);
        Some(Duration::from_micros(by_boot.max(by_wall)))
    }
}

/// What a good frame was good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    /// Nothing is missing up to the frame's own instant.
    pub(crate) is_current: bool,
    /// The frame ends where we are now.
    pub(crate) is_last: bool,
    pub(crate) jwks_etag: String,
}

/// Why a frame changed nothing; each is logged under its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("not a frame: {0}")]
    Malformed(&'static str),
    #[error("its key is not known")]
    UnknownKey,
    #[error("its signature is wrong")]
    Signature,
    #[error("from another issuer")]
    Issuer,
    #[error("of a version that is not read")]
    Version,
    #[error("signed more than 30 s away from our clock")]
    Skew,
    #[error("of an older epoch")]
    Rollback,
    #[error("records before it are missing")]
    Gap,
    #[error("there is no room for its records")]
    Full,
}

impl Refused {
    pub(crate) fn event(self) -> &'static str {
        match self {
            Self::Skew => "feed.skew",
            Self::Rollback => "feed.rollback",
            Self::Gap => "feed.gap",
            Self::Full => "feed.full",
            _ => "feed.rejected",
        }
    }

    /// Whom an alarm should wake: these are no accidents of the network.
    pub(crate) fn severity(self) -> Option<&'static str> {
        let is_grave = matches!(self.event(), "feed.rejected" | "feed.rollback");
        is_grave.then_some("high")
    }
}

impl Feed {
    pub(crate) fn new(issuer: String, clock: Clock, counters: Arc<Counters>) -> Self {
        Self {
            issuer,
            clock,
            counters,
            known: ArcSwap::new(Known::nothing(None)),
            writer: Mutex::new(()),
            // Until the issuer has said what it allows, what everybody may.
            allowed: AtomicU64::new(form(MaxAge::STANDARD)),
            asked: AtomicU64::new(0),
            is_stale: AtomicBool::new(false),
            position: watch::Sender::new(Position::default()),
        }
    }

    /// Takes a signed frame. One that is refused changes nothing and makes nothing fresher.
    pub(crate) fn take(&self, jws: &str, keys: &Keys) -> Result<Applied, Refused> {
        let frame = opened(jws, keys)?;
        self.apply(&frame)?;
        Ok(Applied {
            is_current: frame.as_of_us.is_some(),
            is_last: self.position() == Some(frame.position()),
            jwks_etag: frame.jwks_etag,
        })
    }

    fn apply(&self, frame: &Frame) -> Result<(), Refused> {
        self.plausible(frame)?;
        let _writer = self.lock();
        let known = self.of_epoch(frame.epoch)?;
        let seq = known.seq.load(Ordering::Relaxed);
        if frame.after > seq {
            return Err(Refused::Gap);
        }
        // What is over is told by the issuer's clock; ours may be wrong.
        let now = frame.as_of_us.unwrap_or(frame.at_us) / 1_000_000;
        let put = known.table.put(&frame.records.0, now);
        put.map_err(|_| Refused::Full)?;
        known.seq.store(seq.max(frame.last), Ordering::Relaxed);
        if let Some(as_of) = frame.as_of_us {
            self.freshen(&known, frame.at_us, as_of);
            known.table.sweep(now);
        }
        let position = frame.position();
        self.position.send_if_modified(|at| {
            let moved = *at < position;
            *at = position.max(*at);
            moved
        });
        Ok(())
    }

    fn plausible(&self, frame: &Frame) -> Result<(), Refused> {
        if frame.iss != self.issuer {
            return Err(Refused::Issuer);
        }
        if frame.v != FRAME_VERSION {
            return Err(Refused::Version);
        }
        let now = self.clock.wall_secs();
        if frame.iat.abs_diff(now) > CLOCK_ERROR_SECS {
            return Err(Refused::Skew);
        }
        if frame.exp.saturating_add(CLOCK_ERROR_SECS) <= now {
            return Err(Refused::Skew);
        }
        let numbers = frame.last.checked_sub(frame.after);
        let numbers = numbers.ok_or(Refused::Malformed("after is beyond last"))?;
        let records = frame.records.0.len();
        if records > FRAME_MAX_RECORDS || records as u64 > numbers {
            return Err(Refused::Malformed("too many records"));
        }
        Ok(())
    }

    /// What is known of this epoch: all, or nothing if the epoch is a newer one.
    fn of_epoch(&self, epoch: u64) -> Result<Arc<Known>, Refused> {
        let known = self.known.load_full();
        if known.epoch == Some(epoch) {
            return Ok(known);
        }
        if known.epoch > Some(epoch) {
            return Err(Refused::Rollback);
        }
        let new = Known::nothing(Some(epoch));
        self.known.store(new.clone());
        self.position.send_replace(Position { epoch, seq: 0 });
        Ok(new)
    }

    fn freshen(&self, known: &Known, at: u64, as_of: u64) {
        // A frame that comes again is not news.
        if as_of <= known.as_of_us.load(Ordering::Relaxed) {
            return;
        }
        let on_its_way = at.saturating_sub(as_of);
        let since = self.clock.boot_us().saturating_sub(on_its_way);
        known.since_boot_us.store(since, Ordering::Relaxed);
        known.as_of_us.store(as_of, Ordering::Release);
        if self.is_stale.swap(false, Ordering::Relaxed) {
            tracing::info!(event = "feed.fresh", "the revocation feed is fresh again");
        }
    }

    /// Whether a token may pass: revoked first, then how old the news is, if that matters.
    pub(crate) fn judge(&self, token: &Good, max_age: Option<MaxAge>) -> Result<(), Rejected> {
        let rev = token.claims.rev;
        let known = self.known.load();
        // Before the records: what came in between makes them newer than this says, not older.
        let age = known.age(&self.clock);
        if known.epoch.is_some_and(|epoch| rev.feed_epoch < epoch) {
            return Err(Rejected::Revoked);
        }
        // Of a newer epoch nothing is known.
        let age = age.filter(|_| known.epoch == Some(rev.feed_epoch));
        if known.table.hits(token.revoked_by, &token.probes, rev) {
            return Err(Rejected::Revoked);
        }
        let Some(max_age) = max_age.map(|asked| self.allowed(asked)) else {
            return Ok(());
        };
        if !max_age.covers(age) {
            self.note_stale(age);
            return Err(Rejected::Stale);
        }
        if max_age == MaxAge::FAIL_OPEN && !MaxAge::STANDARD.covers(age) {
            self.counters.failed_open();
        }
        Ok(())
    }

    fn note_stale(&self, age: Option<Duration>) {
        if !self.is_stale.swap(true, Ordering::Relaxed) {
            let age_seconds = age.map(|age| age.as_secs_f64());
            tracing::warn!(
                event = "feed.stale",
                age_seconds,
                "the revocation feed is too old: tokens are not accepted on its strength"
            );
        }
    }

    /// No more than the registration allows.
    fn allowed(&self, max_age: MaxAge) -> MaxAge {
        let asked = form(max_age);
        if asked > self.asked.load(Ordering::Relaxed) {
            self.asked.fetch_max(asked, Ordering::Relaxed);
        }
        max_age.min(MaxAge::from_form(self.allowed.load(Ordering::Relaxed)))
    }

    pub(crate) fn allow(&self, longest: MaxAge) {
        self.allowed.store(form(longest), Ordering::Relaxed);
    }

    /// The longest `max_age` in force here.
    pub(crate) fn longest_max_age(&self) -> MaxAge {
        let asked = MaxAge::from_form(self.asked.load(Ordering::Relaxed));
        asked.min(MaxAge::from_form(self.allowed.load(Ordering::Relaxed)))
    }

    /// Says beforehand that requests will ask for this.
    pub(crate) fn expect(&self, max_age: MaxAge) {
        self.asked.fetch_max(form(max_age), Ordering::Relaxed);
    }

    /// Where we stand; `None` before the first good frame.
    pub(crate) fn position(&self) -> Option<Position> {
        let known = self.known.load();
        known.epoch.map(|epoch| Position {
            epoch,
            seq: known.seq.load(Ordering::Relaxed),
        })
    }

    /// Changes with the position.
    pub(crate) fn positions(&self) -> watch::Receiver<Position> {
        self.position.subscribe()
    }

    /// How old the news is; `None` before the first.
    pub(crate) fn age(&self) -> Option<Duration> {
        self.known.load().age(&self.clock)
    }

    /// All that was committed before this instant is known; 0 where nothing is.
    pub(crate) fn as_of_us(&self) -> u64 {
        self.known.load().as_of_us.load(Ordering::Relaxed)
    }

    /// Records held and the memory that they take.
    pub(crate) fn size(&self) -> (usize, usize) {
        let known = self.known.load();
        (known.table.len(), known.table.memory_bytes())
    }

    pub(crate) fn has_revoked(&self, key: Digest) -> bool {
        self.known.load().table.holds(key)
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        // Nothing is half done that a second try would not repair.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn form(max_age: MaxAge) -> u64 {
    max_age.as_secs().unwrap_or(u64::MAX)
}

/// The key that a frame names.
pub(crate) fn kid(jws: &str) -> Option<String> {
    let jws = Unverified::parse(jws, &ALGORITHMS, &FRAME).ok()?;
    Some(jws.kid().to_owned())
}

/// The claims of a frame whose signature is right.
fn opened(jws: &str, keys: &Keys) -> Result<Frame, Refused> {
    let jws = Unverified::parse(jws, &ALGORITHMS, &FRAME)
        .map_err(|_| Refused::Malformed("form or header"))?;
    let key = keys.find(jws.kid()).ok_or(Refused::UnknownKey)?;
    if key.algorithm() != jws.algorithm() {
        return Err(Refused::Signature);
    }
    if key.verifies(jws.signature(), jws.signed()) != Some(true) {
        return Err(Refused::Signature);
    }
    if jws.payload().first() != Some(&b'{') {
        return Err(Refused::Malformed("claims"));
    }
    serde_json::from_slice(jws.payload()).map_err(|_| Refused::Malformed("claims"))
}

const FRAME: Form = Form {
    types: &["revocation-frame+jwt", "application/revocation-frame+jwt"],
    max_bytes: FRAME_MAX_BYTES,
};

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::key::KeyId;
    use crate::probe::Probes;
    use crate::{Claims, Digest, JwkSet, Kind, ManualClock};

    const VECTORS: &str = include_str!("../vectors/frames.json");

    fn good(token: &Value) -> Good {
        let claims: Claims = serde_json::from_value(token["claims"].clone()).unwrap();
        let kid = token["kid"].as_str().unwrap();
        Good {
            kid: kid.to_owned(),
            key: KeyId::NONE,
            revoked_by: Digest::of(Kind::Key, kid),
            probes: Probes::of(&claims),
            claims,
        }
    }

    fn verdict(judged: Result<(), Rejected>) -> &'static str {
        judged.map_or_else(|rejected| rejected.reason(), |()| "ok")
    }

    #[test]
    fn the_stories_of_the_vectors_go_as_they_are_told() {
        let file: Value = serde_json::from_str(VECTORS).unwrap();
        let jwks: JwkSet = serde_json::from_value(file["jwks"].clone()).unwrap();
        let keys = Keys::parse(&jwks).unwrap();
        for story in file["stories"].as_array().unwrap() {
            let clock = ManualClock::at(file["now"].as_u64().unwrap());
            let issuer = file["issuer"].as_str().unwrap().to_owned();
            let feed = Feed::new(issuer, Clock::from(&clock), Arc::default());
            for (at, step) in story["steps"].as_array().unwrap().iter().enumerate() {
                let told = format!("{}, step {at}", story["name"]);
                clock.advance(Duration::from_secs(step["elapse"].as_u64().unwrap()));
                if let Some(frame) = step["frame"].as_str() {
                    let outcome = match feed.take(frame, &keys) {
                        Ok(_) => "applied",
                        Err(refused) => refused.event().trim_start_matches("feed."),
                    };
                    assert_eq!(outcome, step["outcome"], "{told}");
                }
                let position = feed.position().map(|position| position.to_string());
                assert_eq!(position.as_deref(), step["position"].as_str(), "{told}");
                let age = feed
                    .age()
                    .map(|age| u64::try_from(age.as_micros()).unwrap());
                assert_eq!(age, step["age_us"].as_u64(), "{told}");
            }
            for token in story["tokens"].as_array().unwrap() {
                let judged = feed.judge(&good(token), Some(MaxAge::STANDARD));
                assert_eq!(verdict(judged), token["verdict"], "{token}");
            }
        }
    }

    #[test]
    fn what_the_issuer_has_not_allowed_is_cut() {
        let clock = ManualClock::at(1_800_000_000);
        let feed = Feed::new("i".into(), Clock::from(&clock), Arc::default());
        let longest = |feed: &Feed| feed.longest_max_age();
        feed.expect(MaxAge::FAIL_OPEN);
        assert_eq!(longest(&feed), MaxAge::STANDARD);
        feed.allow(MaxAge::secs(300));
        assert_eq!(longest(&feed), MaxAge::secs(300));
        feed.allow(MaxAge::FAIL_OPEN);
        assert_eq!(longest(&feed), MaxAge::FAIL_OPEN);
        assert_eq!(feed.allowed(MaxAge::STRICT), MaxAge::STRICT);
    }
}
