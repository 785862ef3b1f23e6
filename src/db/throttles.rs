//! `throttles` and `known_devices`: what failed sign-ins cost, the same on every node.

use std::time::Duration;

use diesel::result::Error as Diesel;
use diesel::sql_types::{BigInt, Binary, Text};
use diesel::{Connection as _, ExpressionMethods, OptionalExtension, QueryDsl, RunQueryDsl};

use super::connection::AnyConnection;
use super::schema::{known_devices as d, passwords, throttles as t, users};
use super::{Error, Transaction};
use crate::accounts::throttle::{Attempt, Bucket, Rule, Verdict};
use crate::accounts::user::Username;
use crate::config::limits::{CLEAN_UP_BATCH, DEVICE_KNOWN, THROTTLE_KEPT, THROTTLE_KEPT_LONG};
use crate::id::UserId;
use crate::secret::Hash;
use crate::time::Timestamp;

/// Counts one more failure, if the wait is over: the row count is the verdict.
///
/// $1 key · $2 end of a window that begins now · $3 now · $4 when the row may go · $5 when the password
/// was set · $6 1 when each failure begins the window anew · $7 free · $8 doublings · $9 longest wait ·
/// $10 first wait · $11 failures in a row · $12 when the row of a long series may go
const COUNT: &str = "
INSERT INTO throttles (key, failures, in_a_row, attempts, window_ends, next_at, last_at, expires_at)
VALUES ($1, 1, 1, 1, $2, $3, $3, $4)
ON CONFLICT (key) DO UPDATE SET
    failures = CASE WHEN throttles.window_ends <= $3 THEN 1 ELSE throttles.failures + 1 END,
    in_a_row = CASE WHEN throttles.last_at < $5 THEN 1 ELSE throttles.in_a_row + 1 END,
    attempts = throttles.attempts + 1,
    window_ends = CASE WHEN throttles.window_ends <= $3 OR $6 = 1 THEN $2 ELSE throttles.window_ends END,
    next_at = CASE
        WHEN throttles.window_ends <= $3 OR throttles.failures + 1 < $7 THEN $3
        WHEN throttles.failures + 1 >= $7 + $8 THEN $3 + $9
        ELSE $3 + $10 * (CAST(1 AS BIGINT) << CAST(throttles.failures + 1 - $7 AS INTEGER))
    END,
    last_at = $3,
    expires_at = CASE WHEN throttles.in_a_row >= $11 / 4 THEN $12 ELSE $4 END
WHERE throttles.next_at <= $3 AND (throttles.in_a_row < $11 OR throttles.last_at < $5)";

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn count(
    connection: &mut AnyConnection,
    bucket: &Bucket,
    password_set: i64,
    now: Timestamp,
) -> Result<bool, Diesel> {
    let Rule {
        free,
        window,
        rolling,
        step,
        doublings,
        most,
        in_a_row,
    } = bucket.rule;
    let rows = diesel::sql_query(COUNT)
        .bind::<Text, _>(&bucket.key)
        .bind::<BigInt, _>((now + *window).micros())
        .bind::<BigInt, _>(now.micros())
        .bind::<BigInt, _>((now + THROTTLE_KEPT).micros())
        .bind::<BigInt, _>(password_set)
        .bind::<BigInt, _>(i64::from(*rolling))
        .bind::<BigInt, _>(i64::from(*free))
        .bind::<BigInt, _>(i64::from(*doublings))
        .bind::<BigInt, _>(micros(*most))
        .bind::<BigInt, _>(micros(*step))
        .bind::<BigInt, _>(i64::from(*in_a_row))
        .bind::<BigInt, _>((now + THROTTLE_KEPT_LONG).micros())
        .execute(connection)?;
    Ok(rows == 1)
}

impl Transaction<'_> {
    /// Counts a try to sign in as a failure in all its buckets, or in none and says how long to wait.
    /// The try itself is counted in any case.
    ///
    /// # Errors
    /// [`Error`].
    pub fn admit(
        &mut self,
        attempt: &Attempt,
        username: Option<&Username>,
        now: Timestamp,
    ) -> Result<Verdict, Error> {
        // Whoever must wait takes no lock, so that a storm on one account holds up nobody else.
        if !self.wait(attempt, now)?.is_zero() {
            return self.put_off(attempt, now);
        }
        let password_set = self.password_set(username)?;
        let all = self.0.transaction(|connection| {
            for bucket in attempt.buckets() {
                if !count(connection, bucket, password_set, now)? {
                    return Err(Diesel::RollbackTransaction);
                }
            }
            Ok(())
        });
        match all {
            Ok(()) => Ok(Verdict::Admitted {
                spray: self.spends_the_last(attempt)?,
            }),
            Err(Diesel::RollbackTransaction) => self.put_off(attempt, now),
            Err(error) => Err(error.into()),
        }
    }

    /// Counts one failure in one bucket; how long to wait when there is no room.
    ///
    /// # Errors
    /// [`Error`].
    pub fn count_failure(
        &mut self,
        bucket: &Bucket,
        now: Timestamp,
    ) -> Result<Option<Duration>, Error> {
        if count(self.0, bucket, 0, now)? {
            return Ok(None);
        }
        let next: Option<i64> = t::table
            .find(&bucket.key)
            .select(t::next_at)
            .first(self.0)
            .optional()?;
        Ok(next.map(|next| Timestamp::from_micros(next).since(now)))
    }

    /// When the password of a name was set, so that a new one ends a series of failures.
    fn password_set(&mut self, username: Option<&Username>) -> Result<i64, Error> {
        let name = username.map_or("", Username::as_str);
        let set: Option<i64> = users::table
            .inner_join(passwords::table)
            .filter(users::username.eq(name))
            .select(passwords::set_at)
            .first(self.0)
            .optional()?;
        Ok(set.unwrap_or(0))
    }

    fn spends_the_last(&mut self, attempt: &Attempt) -> Result<bool, Error> {
        let networks = attempt.buckets().filter(|bucket| bucket.is_network());
        for bucket in networks {
            let failures: i64 = t::table
                .find(&bucket.key)
                .select(t::failures)
                .first(self.0)?;
            if failures == i64::from(bucket.rule.free) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn wait(&mut self, attempt: &Attempt, now: Timestamp) -> Result<Duration, Error> {
        let keys: Vec<&str> = attempt
            .buckets()
            .map(|bucket| bucket.key.as_str())
            .collect();
        let next: Option<i64> = t::table
            .filter(t::key.eq_any(keys))
            .select(diesel::dsl::max(t::next_at))
            .first(self.0)?;
        Ok(Timestamp::from_micros(next.unwrap_or(0)).since(now))
    }

    fn put_off(&mut self, attempt: &Attempt, now: Timestamp) -> Result<Verdict, Error> {
        let account = attempt.account();
        diesel::update(t::table.find(&account.key))
            .set(t::attempts.eq(t::attempts + 1))
            .execute(self.0)?;
        let wait = self.wait(attempt, now)?;
        Ok(if wait.is_zero() {
            Verdict::Exhausted
        } else {
            Verdict::Wait(wait)
        })
    }

    /// Takes back what [`Transaction::admit`] counted, since the try was no failure. When it was a
    /// success, what counts this account from here begins anew, and so does its series.
    ///
    /// # Errors
    /// [`Error`].
    pub fn absolve(
        &mut self,
        attempt: &Attempt,
        success: bool,
        now: Timestamp,
    ) -> Result<(), Error> {
        for bucket in attempt.buckets() {
            let row = t::table.find(&bucket.key);
            if success && bucket.rule.rolling {
                diesel::delete(row).execute(self.0)?;
                continue;
            }
            diesel::update(row.filter(t::failures.gt(0)))
                .set((
                    t::failures.eq(t::failures - 1),
                    t::in_a_row.eq(t::in_a_row - 1),
                    t::next_at.eq(now.micros()),
                ))
                .execute(self.0)?;
        }
        Ok(())
    }

    /// Ends the series of failures of an account: somebody signed in to it.
    ///
    /// # Errors
    /// [`Error`].
    pub fn end_series(&mut self, account: &Bucket) -> Result<(), Error> {
        diesel::update(t::table.find(&account.key))
            .set(t::in_a_row.eq(0))
            .execute(self.0)?;
        Ok(())
    }

    /// Whether somebody signed in to this account from this browser before.
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
            .get_result(self.0)?;
        Ok(known > 0)
    }

    /// Remembers a browser that signed in.
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
        .execute(self.0)?;
        Ok(())
    }

    /// Removes throttles that no longer hold anybody back, and browsers that were not seen for long.
    pub(super) fn sweep_throttles(&mut self, now: Timestamp) -> Result<usize, Error> {
        let keys: Vec<String> = t::table
            .filter(t::expires_at.lt(now.micros()))
            .order(t::expires_at)
            .limit(CLEAN_UP_BATCH)
            .select(t::key)
            .load(self.0)?;
        let throttles = diesel::delete(
            t::table
                .filter(t::key.eq_any(keys))
                .filter(t::expires_at.lt(now.micros())),
        )
        .execute(self.0)?;
        let hashes: Vec<Vec<u8>> = d::table
            .filter(d::expires_at.lt(now.micros()))
            .order(d::expires_at)
            .limit(CLEAN_UP_BATCH)
            .select(d::id_hash)
            .load(self.0)?;
        let devices = diesel::delete(
            d::table
                .filter(d::id_hash.eq_any(hashes))
                .filter(d::expires_at.lt(now.micros())),
        )
        .execute(self.0)?;
        Ok(throttles + devices)
    }
}
