//! `throttles` and `known_devices`: counters of failed sign-ins, shared by all nodes. All instants are
//! times of the database ([`Transaction::database_time`]).

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use diesel::result::Error as Diesel;
use diesel::sql_types::{BigInt, Binary, Nullable, Text};
use diesel::{
    Connection as _, ExpressionMethods, OptionalExtension, QueryDsl, QueryableByName, RunQueryDsl,
    TextExpressionMethods,
};

use super::connection::AnyConnection;
use super::schema::{known_devices as d, throttles as t, users};
use super::{Error, Transaction};
use crate::accounts::throttle::{Attempt, Bucket, Counter, Rule, Verdict, keys_of_address};
use crate::accounts::user::Username;
use crate::config::limits::{
    ATTEMPT_IN_PROGRESS, CLEAN_UP_BATCH, DEVICE_KNOWN, THROTTLE_KEPT, THROTTLE_KEPT_LONG,
};
use crate::id::UserId;
use crate::secret::Hash;
use crate::time::Timestamp;

/// Reserves a failure for an attempt whose outcome is not known yet. The row count is 1 if it is admitted. No
/// attempt is admitted during a wait, or if the series or the window is full; after a wait, one attempt is
/// admitted at a time. If the name was assigned to or removed from a user, a new series starts.
///
/// $1 key · $2 user · $3 now · $4 when the row expires · $5 when the attempt is abandoned · $6 longest
/// wait · $7 failures in a row · $8 window · $9 free
const RESERVE: &str = "
INSERT INTO throttles (key, user_id, failures, in_a_row, attempts, window_ends, next_at, last_at, expires_at,
    in_progress, in_progress_until)
VALUES ($1, $2, 0, 0, 1, 0, 0, $3, $4, 1, $5)
ON CONFLICT (key) DO UPDATE SET
    in_a_row = CASE WHEN coalesce(throttles.user_id, '') = coalesce($2, '') THEN throttles.in_a_row ELSE 0 END,
    user_id = $2,
    attempts = throttles.attempts + 1,
    next_at = 0,
    in_progress = throttles.in_progress + 1,
    in_progress_until = $5
WHERE (throttles.next_at <= $3 OR throttles.next_at > $3 + $6)
    AND throttles.in_progress
        + CASE WHEN coalesce(throttles.user_id, '') = coalesce($2, '') THEN throttles.in_a_row ELSE 0 END < $7
    AND (throttles.in_progress = 0 OR throttles.in_progress
        + CASE WHEN throttles.window_ends > $3 AND throttles.window_ends <= $3 + $8 THEN throttles.failures ELSE 0 END
        < $9)";

/// Counts one failure, of an attempt in progress or immediately ($6). An immediate failure is counted unless
/// a wait is due; then no row is returned.
///
/// $1 key · $2 user · $3 end of a window that starts now · $4 now · $5 when the row expires · $6 1 if it
/// was not an attempt in progress · $7 1 if each failure starts a new window · $8 free · $9 longest wait ·
/// $10 doublings · $11 first wait · $12 a long series · $13 when the row of a long series expires
const FAIL: &str = "
INSERT INTO throttles (key, user_id, failures, in_a_row, attempts, window_ends, next_at, last_at, expires_at,
    in_progress, in_progress_until)
VALUES ($1, $2, 1, 1, 1, $3, 0, $4, $5, 0, 0)
ON CONFLICT (key) DO UPDATE SET
    failures = CASE WHEN throttles.window_ends <= $4 OR throttles.window_ends > $3 THEN 1
        ELSE throttles.failures + 1 END,
    in_a_row = throttles.in_a_row + 1,
    attempts = throttles.attempts + $6,
    window_ends = CASE WHEN throttles.window_ends <= $4 OR throttles.window_ends > $3
            OR throttles.failures = 0 OR $7 = 1 THEN $3
        ELSE throttles.window_ends END,
    next_at = CASE
        WHEN throttles.window_ends <= $4 OR throttles.window_ends > $3 OR throttles.failures + 1 < $8 THEN
            CASE WHEN throttles.next_at > $4 AND throttles.next_at <= $4 + $9 THEN throttles.next_at ELSE 0 END
        WHEN throttles.failures + 1 >= $8 + $10 THEN $4 + $9
        ELSE $4 + $11 * (CAST(1 AS BIGINT) << CAST(throttles.failures + 1 - $8 AS INTEGER))
    END,
    last_at = $4,
    in_progress = CASE WHEN throttles.in_progress > 0 THEN throttles.in_progress - 1 ELSE 0 END,
    expires_at = CASE WHEN throttles.in_a_row >= $12 THEN $13 ELSE $5 END
WHERE $6 = 0 OR throttles.next_at <= $4 OR throttles.next_at > $4 + $9
RETURNING failures";

/// Counts abandoned attempts as failures, because their outcome is unknown. They cause no wait.
///
/// $1 now · $2 end of a window that starts now · $3 key · $4 when an attempt that starts now is abandoned
const ABANDON: &str = "
UPDATE throttles SET
    failures = in_progress + CASE WHEN window_ends <= $1 OR window_ends > $2 THEN 0 ELSE failures END,
    window_ends = CASE WHEN window_ends <= $1 OR window_ends > $2 OR failures = 0 THEN $2 ELSE window_ends END,
    in_a_row = in_a_row + in_progress,
    last_at = $1,
    in_progress = 0
WHERE key = $3 AND in_progress > 0 AND (in_progress_until <= $1 OR in_progress_until > $4)";

#[derive(QueryableByName)]
struct Failures {
    #[diesel(sql_type = BigInt)]
    failures: i64,
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn reserve(
    connection: &mut AnyConnection,
    bucket: &Bucket,
    now: Timestamp,
) -> Result<bool, Diesel> {
    let rule = bucket.rule;
    let rows = diesel::sql_query(RESERVE)
        .bind::<Text, _>(&bucket.key)
        .bind::<Nullable<Text>, _>(bucket.user.as_ref().map(UserId::as_str))
        .bind::<BigInt, _>(now.micros())
        .bind::<BigInt, _>((now + THROTTLE_KEPT).micros())
        .bind::<BigInt, _>((now + ATTEMPT_IN_PROGRESS).micros())
        .bind::<BigInt, _>(micros(rule.most))
        .bind::<BigInt, _>(i64::from(rule.in_a_row))
        .bind::<BigInt, _>(micros(rule.window))
        .bind::<BigInt, _>(i64::from(rule.free))
        .execute(connection)?;
    Ok(rows == 1)
}

/// How a failure comes to its bucket.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FailureKind {
    /// Its attempt was admitted before, and holds a place.
    Admitted,
    /// It is counted without an admission, if the bucket has room.
    Immediate,
}

/// Counts a failure. Returns the number of failures in the window, or `None` if it was not counted.
fn fail(
    connection: &mut AnyConnection,
    bucket: &Bucket,
    kind: FailureKind,
    now: Timestamp,
) -> Result<Option<i64>, Diesel> {
    let Rule {
        free,
        window,
        rolling,
        step,
        doublings,
        most,
        in_a_row,
    } = bucket.rule;
    let counted = diesel::sql_query(FAIL)
        .bind::<Text, _>(&bucket.key)
        .bind::<Nullable<Text>, _>(bucket.user.as_ref().map(UserId::as_str))
        .bind::<BigInt, _>((now + *window).micros())
        .bind::<BigInt, _>(now.micros())
        .bind::<BigInt, _>((now + THROTTLE_KEPT).micros())
        .bind::<BigInt, _>(i64::from(kind == FailureKind::Immediate))
        .bind::<BigInt, _>(i64::from(*rolling))
        .bind::<BigInt, _>(i64::from(*free))
        .bind::<BigInt, _>(micros(*most))
        .bind::<BigInt, _>(i64::from(*doublings))
        .bind::<BigInt, _>(micros(*step))
        .bind::<BigInt, _>(i64::from(*in_a_row / 4))
        .bind::<BigInt, _>((now + THROTTLE_KEPT_LONG).micros())
        .get_result::<Failures>(connection)
        .optional()?;
    Ok(counted.map(|counted| counted.failures))
}

fn abandon(connection: &mut AnyConnection, bucket: &Bucket, now: Timestamp) -> Result<(), Diesel> {
    diesel::sql_query(ABANDON)
        .bind::<BigInt, _>(now.micros())
        .bind::<BigInt, _>((now + bucket.rule.window).micros())
        .bind::<Text, _>(&bucket.key)
        .bind::<BigInt, _>((now + ATTEMPT_IN_PROGRESS).micros())
        .execute(connection)?;
    Ok(())
}

/// Stored state by key, and the user that it is of.
type Counters = HashMap<String, (Counter, Option<String>)>;

type Row = (String, Option<String>, i64, i64, i64, i64, i64, i64);

fn counter(
    (key, user, failures, window_ends, in_a_row, next_at, in_progress, until): Row,
) -> (String, (Counter, Option<String>)) {
    let counter = Counter {
        failures,
        window_ends: Timestamp::from_micros(window_ends),
        in_a_row,
        next_at: Timestamp::from_micros(next_at),
        in_progress,
        in_progress_until: Timestamp::from_micros(until),
    };
    (key, (counter, user))
}

/// Returns why an attempt is not admitted: the longest wait, else the strictest of the other reasons.
fn refusal(attempt: &Attempt, counters: &Counters, now: Timestamp) -> Option<Verdict> {
    let refusals = attempt.buckets().filter_map(|bucket| {
        let (mut counter, user) = counters.get(&bucket.key)?.clone();
        if user.as_deref() != bucket.user.as_ref().map(UserId::as_str) {
            counter.in_a_row = 0;
        }
        counter.refusal(bucket.rule, now)
    });
    refusals.max_by_key(|refusal| match refusal {
        Verdict::Wait(wait) => (3, *wait),
        Verdict::Exhausted => (2, Duration::ZERO),
        Verdict::Busy => (1, Duration::ZERO),
        Verdict::Admitted => (0, Duration::ZERO),
    })
}

impl Transaction<'_> {
    /// Admits an attempt to sign in to all its buckets, or to none and returns why. An admitted attempt is
    /// in progress until [`Transaction::record_failure`], [`Transaction::record_success`] or
    /// [`Transaction::refund_attempt`].
    ///
    /// # Errors
    /// [`Error`].
    pub fn admit(&mut self, attempt: &Attempt, now: Timestamp) -> Result<Verdict, Error> {
        // An attempt that must wait takes no lock, so that many attempts on one account delay no other.
        let counters = self.counters(attempt)?;
        if let Some(verdict) = refusal(attempt, &counters, now) {
            return self.reject(attempt, verdict);
        }
        let all = self.connection.transaction(|connection| {
            for bucket in attempt.buckets() {
                let counter = counters.get(&bucket.key).map(|(counter, _)| counter);
                if counter.is_some_and(|counter| counter.is_abandoned(now)) {
                    abandon(connection, bucket, now)?;
                }
                if !reserve(connection, bucket, now)? {
                    return Err(Diesel::RollbackTransaction);
                }
            }
            Ok(())
        });
        match all {
            Ok(()) => Ok(Verdict::Admitted),
            Err(Diesel::RollbackTransaction) => {
                let counters = self.counters(attempt)?;
                // Another attempt took the place, and may have released it since.
                let verdict = refusal(attempt, &counters, now).unwrap_or(Verdict::Busy);
                self.reject(attempt, verdict)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Counts an admitted attempt as a failure. Returns whether it used the last free failure of a network.
    ///
    /// # Errors
    /// [`Error`].
    pub fn record_failure(&mut self, attempt: &Attempt, now: Timestamp) -> Result<bool, Error> {
        let mut spray = false;
        for bucket in attempt.buckets() {
            let failures = fail(self.connection, bucket, FailureKind::Admitted, now)?;
            spray |= bucket.is_network() && failures == Some(i64::from(bucket.rule.free));
        }
        Ok(spray)
    }

    /// Completes an admitted attempt that succeeded: the counters of the account from this address are reset,
    /// and `account` starts a new series.
    ///
    /// # Errors
    /// [`Error`].
    pub fn record_success(&mut self, attempt: &Attempt, account: &Bucket) -> Result<(), Error> {
        for bucket in attempt.buckets() {
            if !bucket.rule.rolling {
                self.refund(bucket)?;
                continue;
            }
            let row = t::table.find(&bucket.key);
            if diesel::delete(row.filter(t::in_progress.le(1))).execute(self.connection)? == 0 {
                // Other attempts are in progress.
                diesel::update(row)
                    .set((
                        t::failures.eq(0),
                        t::in_a_row.eq(0),
                        t::next_at.eq(0),
                        t::in_progress.eq(t::in_progress - 1),
                    ))
                    .execute(self.connection)?;
            }
        }
        diesel::update(t::table.find(&account.key))
            .set(t::in_a_row.eq(0))
            .execute(self.connection)?;
        Ok(())
    }

    /// Completes an admitted attempt whose password was not checked.
    ///
    /// # Errors
    /// [`Error`].
    pub fn refund_attempt(&mut self, attempt: &Attempt) -> Result<(), Error> {
        for bucket in attempt.buckets() {
            self.refund(bucket)?;
        }
        Ok(())
    }

    fn refund(&mut self, bucket: &Bucket) -> Result<(), Error> {
        let open = t::table.find(&bucket.key).filter(t::in_progress.gt(0));
        diesel::update(open)
            .set(t::in_progress.eq(t::in_progress - 1))
            .execute(self.connection)?;
        Ok(())
    }

    /// Counts one failure in one bucket. Returns how long to wait if the bucket has no room.
    ///
    /// # Errors
    /// [`Error`].
    pub fn count_failure(
        &mut self,
        bucket: &Bucket,
        now: Timestamp,
    ) -> Result<Option<Duration>, Error> {
        if fail(self.connection, bucket, FailureKind::Immediate, now)?.is_some() {
            return Ok(None);
        }
        let next: Option<i64> = t::table
            .find(&bucket.key)
            .select(t::next_at)
            .first(self.connection)
            .optional()?;
        Ok(next.map(|next| Timestamp::from_micros(next).since(now)))
    }

    /// Returns the user of a name.
    ///
    /// # Errors
    /// [`Error`].
    pub fn find_user_id(&mut self, username: &Username) -> Result<Option<UserId>, Error> {
        let id: Option<String> = users::table
            .filter(users::username.eq(username.as_str()))
            .select(users::id)
            .first(self.connection)
            .optional()?;
        Ok(id.map(UserId::from))
    }

    fn counters(&mut self, attempt: &Attempt) -> Result<Counters, Error> {
        let keys: Vec<&str> = attempt
            .buckets()
            .map(|bucket| bucket.key.as_str())
            .collect();
        let rows: Vec<Row> = t::table
            .filter(t::key.eq_any(keys))
            .select((
                t::key,
                t::user_id,
                t::failures,
                t::window_ends,
                t::in_a_row,
                t::next_at,
                t::in_progress,
                t::in_progress_until,
            ))
            .load(self.connection)?;
        Ok(rows.into_iter().map(counter).collect())
    }

    /// Counts an attempt that was rejected because of earlier failures.
    fn reject(&mut self, attempt: &Attempt, verdict: Verdict) -> Result<Verdict, Error> {
        if verdict != Verdict::Busy {
            diesel::update(t::table.find(&attempt.account().key))
                .set(t::attempts.eq(t::attempts + 1))
                .execute(self.connection)?;
        }
        Ok(verdict)
    }

    /// Clears all counters of a user, because a new password ends every wait and every series. Returns how
    /// many there were.
    ///
    /// # Errors
    /// [`Error`].
    pub fn clear_user_throttles(&mut self, user: &UserId) -> Result<usize, Error> {
        // Account rows last, in the order in which attempts lock them.
        let rows = || t::table.filter(t::user_id.eq(user.as_str()));
        let mut cleared = 0;
        for keys in ["pair:%", "device:%", "%"] {
            cleared += diesel::delete(rows().filter(t::key.like(keys))).execute(self.connection)?;
        }
        Ok(cleared)
    }

    /// Clears all counters of an address and of its networks. Returns how many there were.
    ///
    /// # Errors
    /// [`Error`].
    pub fn clear_address_throttles(&mut self, address: IpAddr) -> Result<usize, Error> {
        let (keys, pairs) = keys_of_address(address);
        let mut cleared = 0;
        for key in keys {
            cleared += diesel::delete(t::table.find(key)).execute(self.connection)?;
        }
        let pairs = t::table.filter(t::key.like(format!("pair:%{pairs}")));
        Ok(cleared + diesel::delete(pairs).execute(self.connection)?)
    }

    /// Clears all counters. Returns how many there were.
    ///
    /// # Errors
    /// [`Error`].
    pub fn clear_throttles(&mut self) -> Result<usize, Error> {
        let mut cleared = 0;
        // In the order in which attempts lock them.
        for keys in ["network:%/24", "network:%", "pair:%", "%"] {
            let rows = t::table.filter(t::key.like(keys));
            cleared += diesel::delete(rows).execute(self.connection)?;
        }
        Ok(cleared)
    }

    /// Returns whether this browser signed in to this account before.
    ///
    /// # Errors
    /// [`Error`].
    pub fn is_known_device(
        &mut self,
        device: &Hash,
        username: Option<&Username>,
        now: Timestamp,
    ) -> Result<bool, Error> {
        let known: i64 = d::table
            .inner_join(users::table)
            .filter(d::id_hash.eq(device.as_bytes()))
            .filter(d::expires_at.gt(now.micros()))
            .filter(users::username.eq(username.map_or("", Username::as_str)))
            .count()
            .get_result(self.connection)?;
        Ok(known > 0)
    }

    /// Records a browser that signed in.
    ///
    /// # Errors
    /// [`Error`].
    pub fn put_known_device(
        &mut self,
        device: &Hash,
        user: &UserId,
        now: Timestamp,
    ) -> Result<(), Error> {
        diesel::sql_query(
            "INSERT INTO known_devices (id_hash, user_id, expires_at) VALUES ($1, $2, $3)
             ON CONFLICT (id_hash, user_id) DO UPDATE SET expires_at = $3",
        )
        .bind::<Binary, _>(device.as_bytes())
        .bind::<Text, _>(user.as_str())
        .bind::<BigInt, _>((now + DEVICE_KNOWN).micros())
        .execute(self.connection)?;
        Ok(())
    }

    /// Removes expired counters and expired browsers.
    pub(super) fn sweep_throttles(&mut self, now: Timestamp) -> Result<usize, Error> {
        let keys: Vec<String> = t::table
            .filter(t::expires_at.lt(now.micros()))
            .order(t::expires_at)
            .limit(CLEAN_UP_BATCH)
            .select(t::key)
            .load(self.connection)?;
        let throttles = diesel::delete(
            t::table
                .filter(t::key.eq_any(keys))
                .filter(t::expires_at.lt(now.micros())),
        )
        .execute(self.connection)?;
        let hashes: Vec<Vec<u8>> = d::table
            .filter(d::expires_at.lt(now.micros()))
            .order(d::expires_at)
            .limit(CLEAN_UP_BATCH)
            .select(d::id_hash)
            .load(self.connection)?;
        let devices = diesel::delete(
            d::table
                .filter(d::id_hash.eq_any(hashes))
                .filter(d::expires_at.lt(now.micros())),
        )
        .execute(self.connection)?;
        Ok(throttles + devices)
    }
}
