//! `feed_head`, and the numbers of `revocations`.
//!
//! A revocation only inserts its record. A sequencer round numbers it after the commit, so that numbers
//! follow the order of commits and have no gaps, even if transactions overlap. The row lock of
//! `feed_head` lets one round run at a time, on any node; there is no leader.

use diesel::sql_types::{BigInt, Nullable};
use diesel::{
    BoolExpressionMethods, ExpressionMethods, OptionalExtension, QueryDsl, QueryableByName,
    RunQueryDsl, sql_query,
};
use portcullis_verifier::{Kind, Record};

use super::connection::AnyConnection;
use super::prepared::Prepared;
use super::schema::{
    authorizations, codes, downtimes, feed_head as h, grants, revocations as t, sessions,
};
use super::{Error, Transaction, pool, unreadable};
use crate::config::limits::{
    CLEAN_UP_BATCH, CLOCK_SKEW, KEY_RECORD_KEPT, LIFE_NEEDED_FOR, NUMBERED_AT_ONCE,
    REGISTRATION_AGE, RESOURCE_ACCESS_CAP,
};
use crate::time::{Clock, Timestamp};

/// The columns of [`Head`] for a database: the time of its server in microseconds, and whether it rejects writes. An
/// embedded database has no server.
macro_rules! head_query {
    ($read_only:literal, $now:literal) => {
        concat!(
            "SELECT epoch, seq, beat, keys_version, config_version, restored_at, ",
            "CAST(CASE WHEN EXISTS (SELECT 1 FROM revocations WHERE seq IS NULL) THEN 1 ELSE 0 END AS BIGINT) AS waiting, ",
            $read_only,
            " AS read_only, ",
            $now,
            " AS database FROM feed_head"
        )
    };
}

const SQLITE_HEAD: &str = head_query!("CAST(0 AS BIGINT)", "CAST(NULL AS BIGINT)");
#[cfg(feature = "postgres")]
const POSTGRES_HEAD: &str = head_query!(
    "CAST(current_setting('transaction_read_only')::bool::int AS BIGINT)",
    "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
);

/// The statement of the sequencer that locks the head of the feed.
macro_rules! lock_query {
    ($now:literal) => {
        concat!(
            "UPDATE feed_head SET seq = seq WHERE restored_at IS NULL RETURNING epoch, seq, beat, longest_life, ",
            $now,
            " AS database"
        )
    };
}

const SQLITE_LOCK: &str = lock_query!("CAST(NULL AS BIGINT)");
#[cfg(feature = "postgres")]
const POSTGRES_LOCK: &str =
    lock_query!("(extract(epoch FROM clock_timestamp()) * 1000000)::bigint");

const SQLITE_NOW: &str = "SELECT CAST(NULL AS BIGINT) AS database";
#[cfg(feature = "postgres")]
const POSTGRES_NOW: &str =
    "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS database";

/// The state of the feed and of other versions, which each poll reads.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// The feed epoch, which grows with each recovery of a restored database.
    pub epoch: i64,
    /// The number of the last record in this epoch.
    pub seq: i64,
    /// Every record that was committed before this instant has a number.
    pub beat: Timestamp,
    /// Grows with each change of keys.
    pub keys_version: i64,
    /// Grows with each change of clients and resources.
    pub config_version: i64,
    /// When a restore of the database was detected; until `recover`.
    pub restored_at: Option<Timestamp>,
    /// Whether there are records without a number.
    pub waiting: bool,
    /// The time of the database server; absent for an embedded database.
    pub database: Option<Timestamp>,
}

#[derive(QueryableByName)]
struct HeadRow {
    #[diesel(sql_type = BigInt)]
    epoch: i64,
    #[diesel(sql_type = BigInt)]
    seq: i64,
    #[diesel(sql_type = BigInt)]
    beat: i64,
    #[diesel(sql_type = BigInt)]
    keys_version: i64,
    #[diesel(sql_type = BigInt)]
    config_version: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    restored_at: Option<i64>,
    #[diesel(sql_type = BigInt)]
    waiting: i64,
    #[diesel(sql_type = BigInt)]
    read_only: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    database: Option<i64>,
}

#[derive(QueryableByName)]
struct Locked {
    #[diesel(sql_type = BigInt)]
    epoch: i64,
    #[diesel(sql_type = BigInt)]
    seq: i64,
    #[diesel(sql_type = BigInt)]
    beat: i64,
    #[diesel(sql_type = BigInt)]
    longest_life: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    database: Option<i64>,
}

/// The result of a recovery.
#[derive(Clone, Copy, Debug)]
pub struct Recovered {
    /// The new feed epoch.
    pub epoch: i64,
    /// The last heartbeat before the recovery.
    pub last_beat: Timestamp,
}

impl Transaction<'_> {
    /// Reads the head of the feed in one statement.
    ///
    /// # Errors
    /// [`Error`]; also if the server rejects writes, because the data of a standby may be old.
    pub fn read_head(&mut self) -> Result<Head, Error> {
        let head = sql_query(match &*self.connection {
            AnyConnection::Sqlite(_) => SQLITE_HEAD,
            #[cfg(feature = "postgres")]
            AnyConnection::Postgres(_) => POSTGRES_HEAD,
        });
        let row: HeadRow = Prepared(head).get_result(self.connection)?;
        if row.read_only != 0 {
            return Err(pool::read_only());
        }
        Ok(Head {
            epoch: row.epoch,
            seq: row.seq,
            beat: Timestamp::from_micros(row.beat),
            keys_version: row.keys_version,
            config_version: row.config_version,
            restored_at: row.restored_at.map(Timestamp::from_micros),
            waiting: row.waiting != 0,
            database: row.database.map(Timestamp::from_micros),
        })
    }

    /// Returns the current time of the database server, which all nodes share, or of `clock` for an
    /// embedded database.
    ///
    /// # Errors
    /// [`Error`].
    pub fn database_time(&mut self, clock: &Clock) -> Result<Timestamp, Error> {
        #[derive(QueryableByName)]
        struct Measured {
            #[diesel(sql_type = Nullable<BigInt>)]
            database: Option<i64>,
        }
        let query = sql_query(self.database_now());
        let row: Measured = Prepared(query).get_result(self.connection)?;
        let measured = row.database.map(Timestamp::from_micros);
        Ok(measured.map_or_else(|| clock.now(), |measured| clock.database(measured)))
    }

    /// Runs one sequencer round: numbers at most [`NUMBERED_AT_ONCE`] records in the order of their ids,
    /// and advances the heartbeat unless some are left. Returns whether some are left.
    ///
    /// # Errors
    /// [`Error`].
    pub fn number_revocations(&mut self, clock: &Clock) -> Result<bool, Error> {
        // 1. Take the row lock. The time is read while the lock is held and before the records are read,
        //    so every record that was committed before that time is read below.
        let lock = match &*self.connection {
            AnyConnection::Sqlite(_) => SQLITE_LOCK,
            #[cfg(feature = "postgres")]
            AnyConnection::Postgres(_) => POSTGRES_LOCK,
        };
        let Some(head) = sql_query(lock)
            .get_result::<Locked>(self.connection)
            .optional()?
        else {
            return Ok(false);
        };
        let measured = head.database.map(Timestamp::from_micros);
        let now = measured.map_or_else(|| clock.now(), |measured| clock.database(measured));
        // 2. Number the records in one statement.
        let numbered = sql_query(
            "UPDATE revocations SET epoch = $1, seq = $2 + waiting.place, expires_at = CASE kind \
               WHEN 'J' THEN token_exp + $3 WHEN 'K' THEN $4 ELSE $5 END \
             FROM (SELECT id AS waiting_id, row_number() OVER (ORDER BY id) AS place FROM revocations \
                   WHERE seq IS NULL ORDER BY id LIMIT $6) AS waiting \
             WHERE id = waiting.waiting_id",
        )
        .bind::<BigInt, _>(head.epoch)
        .bind::<BigInt, _>(head.seq)
        .bind::<BigInt, _>(micros(CLOCK_SKEW))
        .bind::<BigInt, _>((now + KEY_RECORD_KEPT).micros())
        .bind::<BigInt, _>(others_expire(head.longest_life, now).micros())
        .bind::<BigInt, _>(NUMBERED_AT_ONCE)
        .execute(self.connection)?;
        let numbered = i64::try_from(numbered).unwrap_or(i64::MAX);
        let left = numbered >= NUMBERED_AT_ONCE;
        // 3. Store the position. While records are left, the heartbeat must not advance.
        let seq = h::seq.eq(h::seq + numbered);
        if left {
            diesel::update(h::table).set(seq).execute(self.connection)?;
        } else {
            let beat = now.micros().max(head.beat + 1);
            diesel::update(h::table)
                .set((seq, h::beat.eq(beat)))
                .execute(self.connection)?;
        }
        Ok(left)
    }

    /// Returns at most `limit` records of an epoch with numbers above `after` and up to `last`, in order.
    ///
    /// # Errors
    /// [`Error`].
    pub fn list_records(
        &mut self,
        epoch: i64,
        (after, last): (i64, i64),
        limit: i64,
    ) -> Result<Vec<(i64, Record)>, Error> {
        type Row = (Option<i64>, String, String, i64, Option<i64>, String);
        let rows: Vec<Row> = t::table
            .filter(t::epoch.eq(epoch))
            .filter(t::seq.gt(after))
            .filter(t::seq.le(last))
            .order(t::seq)
            .limit(limit)
            .select((t::seq, t::kind, t::value, t::floor, t::expires_at, t::id))
            .load(self.connection)?;
        let record = |(seq, kind, value, floor, expires, id): Row| {
            let broken = |column| unreadable("revocations", column, &id);
            let mut letters = kind.chars();
            let kind = letters.next().and_then(Kind::from_letter);
            let expires = expires.ok_or_else(|| broken("expires_at"))?;
            let record = Record::new(
                kind.ok_or_else(|| broken("kind"))?,
                &value,
                u32::try_from(floor).map_err(|_| broken("floor"))?,
                seconds_up(expires),
            );
            Ok((seq.ok_or_else(|| broken("seq"))?, record))
        };
        rows.into_iter().map(record).collect()
    }

    /// Announces the maximum lifetime of access tokens that a node issues. Records are kept longer than the
    /// longest announced one, which is forgotten when no node has announced it for 2 h.
    ///
    /// # Errors
    /// [`Error`].
    pub fn require_max_token_ttl(
        &mut self,
        ttl: std::time::Duration,
        now: Timestamp,
    ) -> Result<(), Error> {
        let forgotten = (now - LIFE_NEEDED_FOR).micros();
        let need = h::longest_life
            .le(micros(ttl))
            .or(h::longest_at.lt(forgotten));
        diesel::update(h::table.filter(need))
            .set((
                h::longest_life.eq(micros(ttl)),
                h::longest_at.eq(now.micros()),
            ))
            .execute(self.connection)?;
        Ok(())
    }

    /// Returns the longest access token lifetime of all resources.
    ///
    /// # Errors
    /// [`Error`].
    pub fn max_resource_access_ttl(&mut self) -> Result<Option<std::time::Duration>, Error> {
        use super::schema::resources;
        let longest: Option<i64> = resources::table
            .select(diesel::dsl::max(resources::access_ttl))
            .first(self.connection)?;
        Ok(longest
            .and_then(|secs| u64::try_from(secs).ok())
            .map(std::time::Duration::from_secs))
    }

    /// Records for every node that the database was restored from an older copy in this feed epoch. Returns
    /// `false` if that is already recorded, or the database was recovered in the meantime.
    ///
    /// # Errors
    /// [`Error`].
    pub fn put_restored(&mut self, epoch: i64, now: Timestamp) -> Result<bool, Error> {
        let unknown = h::restored_at.is_null().and(h::epoch.eq(epoch));
        let rows = diesel::update(h::table.filter(unknown))
            .set(h::restored_at.eq(now.micros()))
            .execute(self.connection)?;
        Ok(rows == 1)
    }

    /// Starts a new feed epoch, and invalidates every grant, code, session and authorization: what was
    /// issued since the copy was made is unknown, and what was revoked since would be active again.
    ///
    /// # Errors
    /// [`Error`].
    pub fn recover(&mut self, now: Timestamp) -> Result<Recovered, Error> {
        self.without_time_limit()?;
        let (old, beat): (i64, i64) = h::table
            .select((h::epoch, h::beat))
            .first(self.connection)?;
        let seconds = i64::try_from(now.secs()).unwrap_or(i64::MAX);
        let epoch = (old + 1).max(seconds);
        diesel::update(h::table)
            .set((
                h::epoch.eq(epoch),
                h::seq.eq(0),
                h::restored_at.eq(None::<i64>),
                h::config_version.eq(h::config_version + 1),
            ))
            .execute(self.connection)?;
        diesel::update(sessions::table.filter(sessions::ended_at.is_null()))
            .set(sessions::ended_at.eq(now.micros()))
            .execute(self.connection)?;
        diesel::update(grants::table.filter(grants::ended_at.is_null()))
            .set(grants::ended_at.eq(now.micros()))
            .execute(self.connection)?;
        diesel::update(codes::table.filter(codes::used_at.is_null()))
            .set(codes::used_at.eq(now.micros()))
            .execute(self.connection)?;
        diesel::delete(authorizations::table).execute(self.connection)?;
        // Values that were issued in the lost time are no longer evidence.
        diesel::delete(downtimes::table).execute(self.connection)?;
        Ok(Recovered {
            epoch,
            last_beat: Timestamp::from_micros(beat),
        })
    }

    /// Removes a batch of records whose tokens have all expired.
    pub(super) fn sweep_revocations(&mut self, now: Timestamp) -> Result<usize, Error> {
        let ids: Vec<String> = t::table
            .filter(t::expires_at.lt(now.micros()))
            .order(t::expires_at)
            .limit(CLEAN_UP_BATCH)
            .select(t::id)
            .load(self.connection)?;
        Ok(diesel::delete(t::table.filter(t::id.eq_any(ids))).execute(self.connection)?)
    }

    fn database_now(&self) -> &'static str {
        match &*self.connection {
            AnyConnection::Sqlite(_) => SQLITE_NOW,
            #[cfg(feature = "postgres")]
            AnyConnection::Postgres(_) => POSTGRES_NOW,
        }
    }

    /// Lifts the statement timeout, for the one transaction that may change every row.
    fn without_time_limit(&mut self) -> Result<(), Error> {
        match &mut *self.connection {
            AnyConnection::Sqlite(_) => Ok(()),
            #[cfg(feature = "postgres")]
            AnyConnection::Postgres(inner) => {
                use diesel::connection::SimpleConnection;
                Ok(inner.batch_execute("SET LOCAL statement_timeout = 0")?)
            }
        }
    }
}

/// Returns when a record of a grant, session, user or client expires: after the longest lifetime of an
/// access token that a node may still issue, the clock skew, and the maximum age of cached registrations.
fn others_expire(longest_life: i64, now: Timestamp) -> Timestamp {
    // No node has announced a lifetime yet, so none issues tokens; the cap is always enough.
    let longest = match u64::try_from(longest_life) {
        Ok(micros) if micros > 0 => std::time::Duration::from_micros(micros),
        _ => RESOURCE_ACCESS_CAP,
    };
    now + longest + CLOCK_SKEW + REGISTRATION_AGE
}

fn micros(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// Rounds up to seconds, so that a record never expires too early.
fn seconds_up(micros: i64) -> u32 {
    let seconds = micros.div_euclid(1_000_000) + i64::from(micros.rem_euclid(1_000_000) > 0);
    u32::try_from(seconds).unwrap_or(if seconds < 0 { 0 } else { u32::MAX })
}
