//! Clean-up: removes, in small batches, what can no longer be accepted. It carries no decision; every
//! node runs it, and two at once only share the work.

use diesel::{
    BoolExpressionMethods, ExpressionMethods, NullableExpressionMethods, QueryDsl, RunQueryDsl,
};

use super::schema::{codes, grants, sessions};
use super::{Error, Transaction};
use crate::config::limits::{CLEAN_UP_BATCH, USED_CODE_KEPT};
use crate::time::Timestamp;

impl Transaction<'_> {
    /// Removes one batch of each kind and says how many rows went.
    ///
    /// # Errors
    /// [`Error`].
    pub fn sweep(&mut self, now: Timestamp) -> Result<usize, Error> {
        // Codes before their grants, which they refer to.
        let codes = self.sweep_codes(now)?;
        let grants = self.sweep_grants(now)?;
        let authorizations = self.drop_expired_authorizations(CLEAN_UP_BATCH, now)?;
        let audit = self.sweep_audit(now)?;
        let throttles = self.sweep_throttles(now)?;
        let feed = self.sweep_revocations(now)? + self.sweep_acks(now)?;
        let sessions = self.sweep_sessions(now)?;
        Ok(codes + grants + authorizations + audit + throttles + feed + sessions)
    }

    /// A used code stays for a while, so that its replay is seen.
    fn sweep_codes(&mut self, now: Timestamp) -> Result<usize, Error> {
        let hashes: Vec<Vec<u8>> = codes::table
            .filter(codes::expires_at.lt((now - USED_CODE_KEPT).micros()))
            .order(codes::expires_at)
            .limit(CLEAN_UP_BATCH)
            .select(codes::hash)
            .load(self.0)?;
        Ok(diesel::delete(codes::table.filter(codes::hash.eq_any(hashes))).execute(self.0)?)
    }

    /// A grant that ended or ran out, once no code refers to it.
    fn sweep_grants(&mut self, now: Timestamp) -> Result<usize, Error> {
        let dead = grants::expires_at
            .lt(now.micros())
            .or(grants::idle_until.lt(now.micros()))
            .or(grants::ended_at.is_not_null().and(
                grants::ended_at
                    .assume_not_null()
                    .lt((now - USED_CODE_KEPT).micros()),
            ));
        let ids: Vec<String> = grants::table
            .filter(dead)
            .filter(diesel::dsl::not(diesel::dsl::exists(
                codes::table.filter(codes::grant_id.eq(grants::id)),
            )))
            .limit(CLEAN_UP_BATCH)
            .select(grants::id)
            .load(self.0)?;
        Ok(diesel::delete(grants::table.filter(grants::id.eq_any(ids))).execute(self.0)?)
    }

    /// A session past its end that no living grant rests on.
    fn sweep_sessions(&mut self, now: Timestamp) -> Result<usize, Error> {
        let hashes: Vec<Vec<u8>> = sessions::table
            .filter(sessions::expires_at.lt(now.micros()))
            .filter(diesel::dsl::not(diesel::dsl::exists(
                grants::table.filter(grants::sid.eq(sessions::sid)),
            )))
            .order(sessions::expires_at)
            .limit(CLEAN_UP_BATCH)
            .select(sessions::id_hash)
            .load(self.0)?;
        Ok(
            diesel::delete(sessions::table.filter(sessions::id_hash.eq_any(hashes)))
                .execute(self.0)?,
        )
    }
}
