//! `client_secrets`. Several secrets of a client may be valid at once.

use diesel::{BoolExpressionMethods, ExpressionMethods, QueryDsl, RunQueryDsl};

use super::schema::client_secrets as t;
use super::{Error, Transaction};
use crate::config::limits::SECRET_TOUCH;
use crate::id::ClientId;
use crate::oauth::client::ClientSecret;
use crate::secret::Hash;
use crate::time::Timestamp;

/// A row, column by column.
pub(super) type Row = (
    String,
    String,
    Vec<u8>,
    String,
    i64,
    Option<i64>,
    Option<i64>,
);

pub(super) fn client_secret(
    (id, _, hash, label, created, expires, last_used): Row,
) -> ClientSecret {
    ClientSecret {
        id,
        hash: Hash::from_bytes(hash),
        label,
        created_at: Timestamp::from_micros(created),
        expires_at: expires.map(Timestamp::from_micros),
        last_used_at: last_used.map(Timestamp::from_micros),
    }
}

impl Transaction<'_> {
    /// Adds a secret to a client.
    ///
    /// # Errors
    /// [`Error`].
    pub fn put_client_secret(
        &mut self,
        client: &ClientId,
        secret: &ClientSecret,
    ) -> Result<(), Error> {
        diesel::insert_into(t::table)
            .values((
                t::id.eq(&secret.id),
                t::client_id.eq(client.as_str()),
                t::hash.eq(secret.hash.as_bytes()),
                t::label.eq(&secret.label),
                t::created_at.eq(secret.created_at.micros()),
                t::expires_at.eq(secret.expires_at.map(Timestamp::micros)),
            ))
            .execute(self.connection)?;
        self.raise_config_version()
    }

    /// Lets the secrets of a client expire at `at` unless they expire earlier, except for the one with the
    /// row id `kept`. Returns how many there were.
    ///
    /// # Errors
    /// [`Error`].
    pub fn expire_client_secrets(
        &mut self,
        client: &ClientId,
        kept: &str,
        at: Timestamp,
    ) -> Result<usize, Error> {
        let rows = diesel::update(
            t::table
                .filter(t::client_id.eq(client.as_str()))
                .filter(t::id.ne(kept))
                .filter(t::expires_at.is_null().or(t::expires_at.gt(at.micros()))),
        )
        .set(t::expires_at.eq(at.micros()))
        .execute(self.connection)?;
        self.raise_config_version()?;
        Ok(rows)
    }

    /// Records that a secret is in use, at most once an hour.
    ///
    /// # Errors
    /// [`Error`].
    pub fn touch_client_secret(&mut self, id: &str, now: Timestamp) -> Result<(), Error> {
        let hour_ago = (now - SECRET_TOUCH).micros();
        diesel::update(
            t::table
                .filter(t::id.eq(id))
                .filter(t::last_used_at.is_null().or(t::last_used_at.le(hour_ago))),
        )
        .set(t::last_used_at.eq(now.micros()))
        .execute(self.connection)?;
        Ok(())
    }
}
