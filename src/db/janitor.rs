//! Clean-up: removes rows that can no longer be accepted, in small batches. No decision depends on it.
//! Every node runs it, one node at a time.

#[cfg(feature = "postgres")]
use diesel::dsl::sql;
#[cfg(feature = "postgres")]
use diesel::sql_types::Bool;
use diesel::{
    BoolExpressionMethods, ExpressionMethods, NullableExpressionMethods, QueryDsl, RunQueryDsl,
};

use super::schema::{codes, grants, sessions};
use super::{AnyConnection, Error, Transaction};
use crate::config::limits::{CLEAN_UP_BATCH, USED_CODE_KEPT};
use crate::time::Timestamp;

/// Removes one batch of a kind and returns the number of rows.
pub type Sweep = fn(&mut Transaction<'_>, Timestamp) -> Result<usize, Error>;

/// The kinds of rows to remove: codes before the grants that they refer to, and grants before their
/// sessions.
pub const SWEEPS: [(&str, Sweep); 10] = [
    ("codes", |tx, now| tx.sweep_codes(now)),
    ("grants", |tx, now| tx.sweep_grants(now)),
    ("sessions", |tx, now| tx.sweep_sessions(now)),
    ("authorizations", |tx, now| {
        tx.drop_expired_authorizations(CLEAN_UP_BATCH, now)
    }),
    ("logout notifications", |tx, now| {
        tx.sweep_logout_notifications(now)
    }),
    ("client assertions", |tx, now| tx.sweep_assertions(now)),
    ("audit", |tx, now| tx.sweep_audit(now)),
    ("throttles", |tx, now| tx.sweep_throttles(now)),
    ("revocations", |tx, now| tx.sweep_revocations(now)),
    ("acknowledgements", |tx, now| tx.sweep_acks(now)),
];

impl Transaction<'_> {
    /// Removes one batch of a kind unless another node is doing so: two would wait for each other's rows.
    ///
    /// # Errors
    /// [`Error`].
    pub fn sweep_in_turn(&mut self, sweep: Sweep, now: Timestamp) -> Result<usize, Error> {
        match self.takes_turn()? {
            true => sweep(self, now),
            false => Ok(0),
        }
    }

    /// Returns whether this transaction got the lock for clean-up. An embedded database has one writer.
    fn takes_turn(&mut self) -> Result<bool, Error> {
        match &mut *self.connection {
            AnyConnection::Sqlite(_) => Ok(true),
            #[cfg(feature = "postgres")]
            AnyConnection::Postgres(inner) => {
                let lock = sql::<Bool>("pg_try_advisory_xact_lock(7093640192)");
                Ok(diesel::select(lock).get_result(inner)?)
            }
        }
    }

    /// Removes codes. A used code is kept for a while, so that a replay is detected. The grant of a code
    /// that was not redeemed is removed with it, because no token was or can be issued for it.
    fn sweep_codes(&mut self, now: Timestamp) -> Result<usize, Error> {
        let rows: Vec<(Vec<u8>, String, Option<i64>)> = codes::table
            .filter(codes::expires_at.lt((now - USED_CODE_KEPT).micros()))
            .order(codes::expires_at)
            .limit(CLEAN_UP_BATCH)
            .select((codes::hash, codes::grant_id, codes::used_at))
            .load(self.connection)?;
        let unredeemed: Vec<String> = rows
            .iter()
            .filter(|(_, _, used_at)| used_at.is_none())
            .map(|(_, grant, _)| grant.clone())
            .collect();
        let hashes: Vec<Vec<u8>> = rows.into_iter().map(|(hash, ..)| hash).collect();
        let removed = diesel::delete(codes::table.filter(codes::hash.eq_any(hashes)))
            .execute(self.connection)?;
        let grants = grants::table.filter(grants::id.eq_any(unredeemed));
        Ok(removed + diesel::delete(grants).execute(self.connection)?)
    }

    /// Removes revoked and expired grants to which no code refers.
    fn sweep_grants(&mut self, now: Timestamp) -> Result<usize, Error> {
        let unreferenced = || {
            diesel::dsl::not(diesel::dsl::exists(
                codes::table.filter(codes::grant_id.eq(grants::id)),
            ))
        };
        // Grants past their absolute expiry have an index. The others need a scan of all grants, which
        // runs only when the batch has room left.
        let mut ids: Vec<String> = grants::table
            .filter(grants::expires_at.lt(now.micros()))
            .filter(unreferenced())
            .order(grants::expires_at)
            .limit(CLEAN_UP_BATCH)
            .select(grants::id)
            .load(self.connection)?;
        let room = CLEAN_UP_BATCH - i64::try_from(ids.len()).unwrap_or(CLEAN_UP_BATCH);
        if room > 0 {
            let inactive = grants::idle_until.lt(now.micros()).or(grants::ended_at
                .is_not_null()
                .and(
                    grants::ended_at
                        .assume_not_null()
                        .lt((now - USED_CODE_KEPT).micros()),
                ));
            let more: Vec<String> = grants::table
                .filter(grants::expires_at.ge(now.micros()))
                .filter(inactive)
                .filter(unreferenced())
                .limit(room)
                .select(grants::id)
                .load(self.connection)?;
            ids.extend(more);
        }
        Ok(
            diesel::delete(grants::table.filter(grants::id.eq_any(ids)))
                .execute(self.connection)?,
        )
    }

    /// Removes expired sessions to which no grant refers.
    fn sweep_sessions(&mut self, now: Timestamp) -> Result<usize, Error> {
        let hashes: Vec<Vec<u8>> = sessions::table
            .filter(sessions::expires_at.lt(now.micros()))
            .filter(diesel::dsl::not(diesel::dsl::exists(
                grants::table.filter(grants::sid.eq(sessions::sid)),
            )))
            .order(sessions::expires_at)
            .limit(CLEAN_UP_BATCH)
            .select(sessions::id_hash)
            .load(self.connection)?;
        Ok(
            diesel::delete(sessions::table.filter(sessions::id_hash.eq_any(hashes)))
                .execute(self.connection)?,
        )
    }
}
