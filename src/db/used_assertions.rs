//! The table `used_assertions`: client assertions that were accepted.

use diesel::sql_types::{BigInt, Binary, Text};
use diesel::{ExpressionMethods, QueryDsl, RunQueryDsl};

use super::schema::used_assertions as t;
use super::{Error, Transaction};
use crate::config::limits::{CLEAN_UP_BATCH, CLOCK_OFF_STOPS};
use crate::oauth::client_auth::UsedAssertion;
use crate::time::Timestamp;

impl Transaction<'_> {
    /// Records that an assertion is accepted. Returns `false` if it was accepted before, on any node (RFC 7523 §3).
    ///
    /// # Errors
    /// [`Error`].
    pub fn use_assertion(&mut self, assertion: &UsedAssertion) -> Result<bool, Error> {
        let rows = diesel::sql_query(
            "INSERT INTO used_assertions (client_id, jti, expires_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        )
        .bind::<Text, _>(assertion.client_id.as_str())
        .bind::<Binary, _>(assertion.jti.as_bytes())
        .bind::<BigInt, _>(assertion.expires_at.micros())
        .execute(self.connection)?;
        Ok(rows == 1)
    }

    /// Removes assertions that have expired, so that they are refused without their row. The clock of a node may differ
    /// from that of the others as long as it is ready, so the rows stay for that time.
    pub(super) fn sweep_assertions(&mut self, now: Timestamp) -> Result<usize, Error> {
        let old = (now - CLOCK_OFF_STOPS).micros();
        let jtis: Vec<Vec<u8>> = t::table
            .filter(t::expires_at.lt(old))
            .order(t::expires_at)
            .limit(CLEAN_UP_BATCH)
            .select(t::jti)
            .load(self.connection)?;
        let expired = t::table
            .filter(t::jti.eq_any(jtis))
            .filter(t::expires_at.lt(old));
        Ok(diesel::delete(expired).execute(self.connection)?)
    }
}
