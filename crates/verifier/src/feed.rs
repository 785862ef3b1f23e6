//! The revocation data of a verifier: the records received from the feed, the position up to which
//! they are complete, and their age. This module applies frames, wherever they were fetched from,
//! and checks tokens.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::frame::{FRAME_MAX_BYTES, FRAME_MAX_RECORDS, FRAME_VERSION};
use crate::metrics::Counters;
use crate::table::Table;
use crate::token::{JwsProfile, UnverifiedJws};
use crate::token_cache::VerifiedToken;
use crate::{Algorithm, Clock, Digest, Frame, Keys, MaxAge, Position, Rejected};

/// Maximum difference between a frame's `iat` and the wall clock, in seconds. A frame can be
/// delayed by this much without being noticed.
const CLOCK_ERROR_SECS: u64 = 30;
const CLOCK_ERROR_US: u64 = CLOCK_ERROR_SECS * 1_000_000;

const ALGORITHMS: [Algorithm; 2] = [Algorithm::ES256, Algorithm::RS256];

const FRAME: JwsProfile = JwsProfile {
    types: &["revocation-frame+jwt", "application/revocation-frame+jwt"],
    max_bytes: FRAME_MAX_BYTES,
};

/// The revocation data of one issuer.
pub(crate) struct Feed {
    issuer: String,
    pub(crate) clock: Clock,
    pub(crate) counters: Arc<Counters>,
    state: ArcSwap<FeedState>,
    /// Serializes the application of frames.
    writer: Mutex<()>,
    /// The longest maximum age that the registration allows, as [`MaxAge::to_raw`].
    allowed_max_age: AtomicU64,
    /// The longest maximum age that was configured or requested, as [`MaxAge::to_raw`].
    requested_max_age: AtomicU64,
    /// Whether it has been logged that the data is too old.
    is_stale: AtomicBool,
    position: watch::Sender<Position>,
}

/// The data of one feed epoch.
struct FeedState {
    /// `None` before the first valid frame.
    epoch: Option<u64>,
    seq: AtomicU64,
    table: Table,
    /// Boot-clock time as of which the data is complete, in microseconds.
    complete_as_of_boot_us: AtomicU64,
    /// Wall-clock time as of which the data is complete, in microseconds since the Unix epoch. 0 if
    /// the data is not complete yet.
    as_of_us: AtomicU64,
}

impl FeedState {
    fn empty(epoch: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            epoch,
            seq: AtomicU64::new(0),
            table: Table::new(),
            complete_as_of_boot_us: AtomicU64::new(0),
            as_of_us: AtomicU64::new(0),
        })
    }

    /// Returns the age of the data: the larger of the ages by both clocks. The wall clock alone
    /// could have been set back. The boot clock alone would count a delayed frame as new.
    fn age(&self, clock: &Clock) -> Option<Duration> {
        let as_of = self.as_of_us.load(Ordering::Acquire);
        if as_of == 0 {
            return None;
        }
        let as_of_boot = self.complete_as_of_boot_us.load(Ordering::Relaxed);
        let by_boot = clock.boot_us().saturating_sub(as_of_boot);
        let by_wall = clock
            .wall_us()
            .saturating_sub(as_of)
            .saturating_sub(CLOCK_ERROR_US);
        Some(Duration::from_micros(by_boot.max(by_wall)))
    }
}

/// The result of applying a valid frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AppliedFrame {
    /// Whether the data is complete as of the frame's `as_of_us`.
    pub(crate) is_current: bool,
    /// Whether the frame's position is the current position.
    pub(crate) is_last: bool,
    pub(crate) jwks_etag: String,
}

/// Why a frame was rejected. Each kind has its own log event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("malformed frame: {0}")]
    Malformed(&'static str),
    #[error("the key is unknown")]
    UnknownKey,
    #[error("the signature is invalid")]
    Signature,
    #[error("the frame is from another issuer")]
    Issuer,
    #[error("the version of the frame is not supported")]
    Version,
    #[error("the frame was signed more than 30 s before or after the time of the local clock")]
    Skew,
    #[error("the frame belongs to an older epoch")]
    Rollback,
    #[error("records before the frame are missing")]
    Gap,
    #[error("the record table is full")]
    Full,
}

impl FrameError {
    pub(crate) fn event(self) -> &'static str {
        match self {
            Self::Skew => "feed.skew",
            Self::Rollback => "feed.rollback",
            Self::Gap => "feed.gap",
            Self::Full => "feed.full",
            _ => "feed.rejected",
        }
    }

    /// Returns the severity for the log. Errors that a network failure cannot cause are `high`, so
    /// that operators can alert on them.
    pub(crate) fn severity(self) -> Option<&'static str> {
        let is_high = matches!(self.event(), "feed.rejected" | "feed.rollback");
        is_high.then_some("high")
    }
}

impl Feed {
    pub(crate) fn new(issuer: String, clock: Clock, counters: Arc<Counters>) -> Self {
        Self {
            issuer,
            clock,
            counters,
            state: ArcSwap::new(FeedState::empty(None)),
            writer: Mutex::new(()),
            // Every subscriber may use this value. The issuer reports its limit later.
            allowed_max_age: AtomicU64::new(MaxAge::STANDARD.to_raw()),
            requested_max_age: AtomicU64::new(0),
            is_stale: AtomicBool::new(false),
            position: watch::Sender::new(Position::default()),
        }
    }

    /// Verifies a signed frame and applies it. A rejected frame does not make the data more recent.
    pub(crate) fn apply_signed(&self, jws: &str, keys: &Keys) -> Result<AppliedFrame, FrameError> {
        let frame = verify_frame(jws, keys)?;
        self.apply(&frame)?;
        Ok(AppliedFrame {
            is_current: frame.as_of_us.is_some(),
            is_last: self.position() == Some(frame.position()),
            jwks_etag: frame.jwks_etag,
        })
    }

    fn apply(&self, frame: &Frame) -> Result<(), FrameError> {
        self.check_frame(frame)?;
        let _writer = self.lock_writer();
        let state = self.state_of_epoch(frame.epoch)?;
        let seq = state.seq.load(Ordering::Relaxed);
        if frame.after > seq {
            return Err(FrameError::Gap);
        }
        // Records expire by the issuer's clock, because the local clock may be wrong.
        let now = frame.as_of_us.unwrap_or(frame.at_us) / 1_000_000;
        let inserted = state.table.insert(&frame.records.0, now);
        inserted.map_err(|_| FrameError::Full)?;
        state.seq.store(seq.max(frame.last), Ordering::Relaxed);
        if let Some(as_of) = frame.as_of_us {
            self.update_age(&state, frame.at_us, as_of);
            state.table.sweep(now);
        }
        let position = frame.position();
        self.position.send_if_modified(|current| {
            let is_ahead = *current < position;
            *current = position.max(*current);
            is_ahead
        });
        Ok(())
    }

    /// Checks the claims of a frame that do not depend on the state of the feed.
    fn check_frame(&self, frame: &Frame) -> Result<(), FrameError> {
        if frame.iss != self.issuer {
            return Err(FrameError::Issuer);
        }
        if frame.v != FRAME_VERSION {
            return Err(FrameError::Version);
        }
        let now = self.clock.wall_secs();
        if frame.iat.abs_diff(now) > CLOCK_ERROR_SECS {
            return Err(FrameError::Skew);
        }
        if frame.exp.saturating_add(CLOCK_ERROR_SECS) <= now {
            return Err(FrameError::Skew);
        }
        let numbers = frame.last.checked_sub(frame.after);
        let numbers = numbers.ok_or(FrameError::Malformed("`after` is greater than `last`"))?;
        let records = frame.records.0.len();
        if records > FRAME_MAX_RECORDS || records as u64 > numbers {
            return Err(FrameError::Malformed("too many records"));
        }
        Ok(())
    }

    /// Returns the data of this epoch. If the epoch is newer than the current one, starts it
    /// without any data.
    fn state_of_epoch(&self, epoch: u64) -> Result<Arc<FeedState>, FrameError> {
        let state = self.state.load_full();
        if state.epoch == Some(epoch) {
            return Ok(state);
        }
        if state.epoch > Some(epoch) {
            return Err(FrameError::Rollback);
        }
        let new = FeedState::empty(Some(epoch));
        self.state.store(new.clone());
        self.position.send_replace(Position { epoch, seq: 0 });
        Ok(new)
    }

    /// Records that the data is complete as of `as_of`, according to a frame signed at `signed_at`.
    fn update_age(&self, state: &FeedState, signed_at: u64, as_of: u64) {
        // A replayed frame does not make the data more recent.
        if as_of <= state.as_of_us.load(Ordering::Relaxed) {
            return;
        }
        let age_when_signed = signed_at.saturating_sub(as_of);
        let as_of_boot = self.clock.boot_us().saturating_sub(age_when_signed);
        state
            .complete_as_of_boot_us
            .store(as_of_boot, Ordering::Relaxed);
        state.as_of_us.store(as_of, Ordering::Release);
        if self.is_stale.swap(false, Ordering::Relaxed) {
            tracing::info!(
                event = "feed.fresh",
                "the revocation data is up to date again"
            );
        }
    }

    /// Checks whether a token is revoked, and then whether the data is recent enough. With a
    /// `max_age` of `None`, any age is accepted.
    pub(crate) fn check_token(
        &self,
        token: &VerifiedToken,
        max_age: Option<MaxAge>,
    ) -> Result<(), Rejected> {
        let rev = token.claims.rev;
        let state = self.state.load();
        // Read before the records: a frame that is applied in between makes them newer than the age
        // says, never older.
        let age = state.age(&self.clock);
        if state.epoch.is_some_and(|epoch| rev.feed_epoch < epoch) {
            return Err(Rejected::Revoked);
        }
        // The data does not cover a newer epoch.
        let age = age.filter(|_| state.epoch == Some(rev.feed_epoch));
        if state.table.revokes(token.key_digest, &token.digests, rev) {
            return Err(Rejected::Revoked);
        }
        let Some(max_age) = max_age.map(|requested| self.limit_max_age(requested)) else {
            return Ok(());
        };
        if !max_age.allows(age) {
            self.log_stale(age);
            return Err(Rejected::Stale);
        }
        if max_age == MaxAge::FAIL_OPEN && !MaxAge::STANDARD.allows(age) {
            self.counters.failed_open();
        }
        Ok(())
    }

    /// Logs that the data is too old, once until it is up to date again.
    fn log_stale(&self, age: Option<Duration>) {
        if !self.is_stale.swap(true, Ordering::Relaxed) {
            let age_seconds = age.map(|age| age.as_secs_f64());
            tracing::warn!(
                event = "feed.stale",
                age_seconds,
                "the revocation data is too old, so tokens are rejected or introspected"
            );
        }
    }

    /// Reduces a requested maximum age to what the registration allows, and records the request.
    fn limit_max_age(&self, requested: MaxAge) -> MaxAge {
        let raw = requested.to_raw();
        if raw > self.requested_max_age.load(Ordering::Relaxed) {
            self.requested_max_age.fetch_max(raw, Ordering::Relaxed);
        }
        requested.min(self.allowed_max_age())
    }

    fn allowed_max_age(&self) -> MaxAge {
        MaxAge::from_raw(self.allowed_max_age.load(Ordering::Relaxed))
    }

    pub(crate) fn set_allowed_max_age(&self, longest: MaxAge) {
        self.allowed_max_age
            .store(longest.to_raw(), Ordering::Relaxed);
    }

    /// Returns the longest maximum age in use: the longest requested one, as far as it is allowed.
    pub(crate) fn longest_max_age(&self) -> MaxAge {
        let requested = MaxAge::from_raw(self.requested_max_age.load(Ordering::Relaxed));
        requested.min(self.allowed_max_age())
    }

    /// Announces that requests will have this maximum age.
    pub(crate) fn announce_max_age(&self, max_age: MaxAge) {
        self.requested_max_age
            .fetch_max(max_age.to_raw(), Ordering::Relaxed);
    }

    /// Returns the current position, or `None` before the first valid frame.
    pub(crate) fn position(&self) -> Option<Position> {
        let state = self.state.load();
        state.epoch.map(|epoch| Position {
            epoch,
            seq: state.seq.load(Ordering::Relaxed),
        })
    }

    /// Returns a receiver that changes with the position.
    pub(crate) fn positions(&self) -> watch::Receiver<Position> {
        self.position.subscribe()
    }

    /// Returns the age of the data, or `None` before the data is first complete.
    pub(crate) fn age(&self) -> Option<Duration> {
        self.state.load().age(&self.clock)
    }

    /// Returns the wall-clock time as of which the data is complete, in microseconds since the Unix
    /// epoch, or 0 before the data is first complete.
    pub(crate) fn as_of_us(&self) -> u64 {
        self.state.load().as_of_us.load(Ordering::Relaxed)
    }

    /// Returns the number of records and the memory that they take, in bytes.
    pub(crate) fn size(&self) -> (usize, usize) {
        let state = self.state.load();
        (state.table.len(), state.table.memory_bytes())
    }

    pub(crate) fn is_key_revoked(&self, key: Digest) -> bool {
        self.state.load().table.contains(key)
    }

    fn lock_writer(&self) -> MutexGuard<'_, ()> {
        // Poisoning is ignored: applying the frame again repairs an incomplete update.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the `kid` of a frame's key.
pub(crate) fn kid(jws: &str) -> Option<String> {
    let jws = UnverifiedJws::parse(jws, &ALGORITHMS, &FRAME).ok()?;
    Some(jws.kid().to_owned())
}

/// Verifies the signature of a frame and parses its claims.
fn verify_frame(jws: &str, keys: &Keys) -> Result<Frame, FrameError> {
    let jws = UnverifiedJws::parse(jws, &ALGORITHMS, &FRAME)
        .map_err(|_| FrameError::Malformed("invalid JWS or header"))?;
    let key = keys.find(jws.kid()).ok_or(FrameError::UnknownKey)?;
    if key.algorithm() != jws.algorithm() {
        return Err(FrameError::Signature);
    }
    if key.verify_signature(jws.signature(), jws.signed()) != Some(true) {
        return Err(FrameError::Signature);
    }
    if jws.payload().first() != Some(&b'{') {
        return Err(FrameError::Malformed("invalid claims"));
    }
    serde_json::from_slice(jws.payload()).map_err(|_| FrameError::Malformed("invalid claims"))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::key::KeyFingerprint;
    use crate::token_digests::TokenDigests;
    use crate::{Claims, Digest, JwkSet, Kind, ManualClock};

    const VECTORS: &str = include_str!("../vectors/frames.json");

    fn verified(token: &Value) -> VerifiedToken {
        let claims: Claims = serde_json::from_value(token["claims"].clone()).unwrap();
        let kid = token["kid"].as_str().unwrap();
        VerifiedToken {
            kid: kid.to_owned(),
            key: KeyFingerprint::ZERO,
            key_digest: Digest::of(Kind::Key, kid),
            digests: TokenDigests::from_claims(&claims),
            claims,
        }
    }

    fn verdict(result: Result<(), Rejected>) -> &'static str {
        result.map_or_else(|rejected| rejected.reason(), |()| "ok")
    }

    #[test]
    fn vector_stories_have_expected_outcomes() {
        let file: Value = serde_json::from_str(VECTORS).unwrap();
        let jwks: JwkSet = serde_json::from_value(file["jwks"].clone()).unwrap();
        let keys = Keys::parse(&jwks).unwrap();
        for story in file["stories"].as_array().unwrap() {
            let clock = ManualClock::at(file["now"].as_u64().unwrap());
            let issuer = file["issuer"].as_str().unwrap().to_owned();
            let feed = Feed::new(issuer, Clock::from(&clock), Arc::default());
            for (at, step) in story["steps"].as_array().unwrap().iter().enumerate() {
                let name = format!("{}, step {at}", story["name"]);
                clock.advance(Duration::from_secs(step["elapse"].as_u64().unwrap()));
                if let Some(frame) = step["frame"].as_str() {
                    let outcome = match feed.apply_signed(frame, &keys) {
                        Ok(_) => "applied",
                        Err(error) => error.event().trim_start_matches("feed."),
                    };
                    assert_eq!(outcome, step["outcome"], "{name}");
                }
                let position = feed.position().map(|position| position.to_string());
                assert_eq!(position.as_deref(), step["position"].as_str(), "{name}");
                let age = feed
                    .age()
                    .map(|age| u64::try_from(age.as_micros()).unwrap());
                assert_eq!(age, step["age_us"].as_u64(), "{name}");
            }
            for token in story["tokens"].as_array().unwrap() {
                let result = feed.check_token(&verified(token), Some(MaxAge::STANDARD));
                assert_eq!(verdict(result), token["verdict"], "{token}");
            }
        }
    }

    #[test]
    fn max_age_is_limited_by_registration() {
        let clock = ManualClock::at(1_800_000_000);
        let feed = Feed::new("i".into(), Clock::from(&clock), Arc::default());
        let longest = |feed: &Feed| feed.longest_max_age();
        feed.announce_max_age(MaxAge::FAIL_OPEN);
        assert_eq!(longest(&feed), MaxAge::STANDARD);
        feed.set_allowed_max_age(MaxAge::secs(300));
        assert_eq!(longest(&feed), MaxAge::secs(300));
        feed.set_allowed_max_age(MaxAge::FAIL_OPEN);
        assert_eq!(longest(&feed), MaxAge::FAIL_OPEN);
        assert_eq!(feed.limit_max_age(MaxAge::STRICT), MaxAge::STRICT);
    }
}
