//! `served_issuer`: the issuer of the last server on this database. The table has at most one row.

use diesel::sql_types::{BigInt, Text};
use diesel::{OptionalExtension, QueryDsl, RunQueryDsl};

use super::schema::served_issuer as t;
use super::{Error, Transaction};
use crate::time::Timestamp;

/// The key of the only row.
const ONLY: i64 = 1;

impl Transaction<'_> {
    /// Returns the issuer of the last server, or `None` before the first start.
    ///
    /// # Errors
    /// [`Error`].
    pub fn served_issuer(&mut self) -> Result<Option<String>, Error> {
        let row = t::table.find(ONLY).select(t::issuer);
        Ok(row.first(self.connection).optional()?)
    }

    /// Stores the issuer of a server that starts.
    ///
    /// # Errors
    /// [`Error`].
    pub fn put_served_issuer(&mut self, issuer: &str, now: Timestamp) -> Result<(), Error> {
        diesel::sql_query(
            "INSERT INTO served_issuer (id, issuer, since) VALUES ($1, $2, $3)
             ON CONFLICT (id) DO UPDATE SET issuer = excluded.issuer, since = excluded.since",
        )
        .bind::<BigInt, _>(ONLY)
        .bind::<Text, _>(issuer)
        .bind::<BigInt, _>(now.micros())
        .execute(self.connection)?;
        Ok(())
    }
}
