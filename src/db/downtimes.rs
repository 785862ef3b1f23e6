//! `downtimes`: times in which no server ran on this database. Nothing was issued in a downtime, so an
//! authentic value from a downtime shows that the database lost a later state.

use diesel::sql_types::BigInt;
use diesel::{ExpressionMethods, QueryDsl, RunQueryDsl};

use super::schema::{downtimes as t, feed_head, grants};
use super::{Error, Transaction};
use crate::id::GrantId;
use crate::time::Timestamp;

impl Transaction<'_> {
    /// Returns the last instant at which a server is known to have run on this database, or at which
    /// it was recovered; `None` before the first start.
    ///
    /// # Errors
    /// [`Error`].
    pub fn last_alive(&mut self) -> Result<Option<Timestamp>, Error> {
        let (epoch, beat): (i64, i64) = feed_head::table
            .select((feed_head::epoch, feed_head::beat))
            .first(self.connection)?;
        if beat == 0 {
            return Ok(None);
        }
        let newest: Option<String> = grants::table
            .select(diesel::dsl::max(grants::id))
            .first(self.connection)?;
        let newest = newest.and_then(|id| GrantId::from(id).made_at());
        // `recover` begins an epoch with the second in which it runs.
        let recovered = Timestamp::from_secs(u64::try_from(epoch).unwrap_or(0));
        let alive = Timestamp::from_micros(beat).max(recovered);
        Ok(Some(newest.map_or(alive, |newest| alive.max(newest))))
    }

    /// Records that no server ran from `began` until `ended`, and removes downtimes that ended before
    /// `kept`.
    ///
    /// # Errors
    /// [`Error`].
    pub fn put_downtime(
        &mut self,
        (began, ended): (Timestamp, Timestamp),
        kept: Timestamp,
    ) -> Result<(), Error> {
        diesel::delete(t::table.filter(t::ended.lt(kept.micros()))).execute(self.connection)?;
        // After a server that stopped before its first heartbeat, the start is the same as before.
        diesel::sql_query(
            "INSERT INTO downtimes (began, ended) VALUES ($1, $2)
             ON CONFLICT (began) DO UPDATE SET ended = excluded.ended",
        )
        .bind::<BigInt, _>(began.micros())
        .bind::<BigInt, _>(ended.micros())
        .execute(self.connection)?;
        Ok(())
    }

    /// Returns the recorded downtimes.
    ///
    /// # Errors
    /// [`Error`].
    pub fn list_downtimes(&mut self) -> Result<Vec<(Timestamp, Timestamp)>, Error> {
        let rows: Vec<(i64, i64)> = t::table.order(t::began).load(self.connection)?;
        let instant = Timestamp::from_micros;
        Ok(rows
            .into_iter()
            .map(|(began, ended)| (instant(began), instant(ended)))
            .collect())
    }

    /// Removes times after `now` from every downtime: a server is running, so a clock was ahead when they
    /// were recorded. Returns whether there were any.
    ///
    /// # Errors
    /// [`Error`].
    pub fn trim_downtimes(&mut self, now: Timestamp) -> Result<bool, Error> {
        let removed =
            diesel::delete(t::table.filter(t::began.ge(now.micros()))).execute(self.connection)?;
        let late = t::table.filter(t::ended.gt(now.micros()));
        let cut = diesel::update(late)
            .set(t::ended.eq(now.micros()))
            .execute(self.connection)?;
        Ok(removed + cut > 0)
    }
}
