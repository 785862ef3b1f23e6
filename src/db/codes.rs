//! The table `codes`.

use diesel::{ExpressionMethods, OptionalExtension, QueryDsl, RunQueryDsl};

use super::prepared::Named;
use super::schema::codes as t;
use super::{Error, Transaction};
use crate::id::{ClientId, GrantId};
use crate::oauth::code::Code;
use crate::oauth::pkce::Challenge;
use crate::secret::Hash;
use crate::time::Timestamp;

type Row = (
    Vec<u8>,
    String,
    String,
    String,
    bool,
    Option<String>,
    Option<String>,
    i64,
    Option<i64>,
);

fn code(
    (hash, grant_id, client_id, redirect_uri, sent, challenge, nonce, expires_at, _): Row,
) -> Code {
    Code {
        hash: Hash::from_bytes(hash),
        grant_id: GrantId::from(grant_id),
        client_id: ClientId::from(client_id),
        redirect_uri,
        redirect_uri_sent: sent,
        challenge: challenge.map(Challenge::from_stored),
        nonce,
        expires_at: Timestamp::from_micros(expires_at),
    }
}

impl Transaction<'_> {
    /// Inserts a code.
    ///
    /// # Errors
    /// [`Error`].
    pub fn put_code(&mut self, code: &Code) -> Result<(), Error> {
        diesel::insert_into(t::table)
            .values((
                t::hash.eq(code.hash.as_bytes()),
                t::grant_id.eq(code.grant_id.as_str()),
                t::client_id.eq(code.client_id.as_str()),
                t::redirect_uri.eq(&code.redirect_uri),
                t::redirect_uri_sent.eq(code.redirect_uri_sent),
                t::challenge.eq(code.challenge.as_ref().map(Challenge::as_str)),
                t::nonce.eq(&code.nonce),
                t::expires_at.eq(code.expires_at.micros()),
            ))
            .execute(self.connection)?;
        Ok(())
    }

    /// Redeems a code in one conditional statement. Returns `None` if it is unknown, expired or used.
    ///
    /// # Errors
    /// [`Error`].
    pub fn take_code(&mut self, hash: &Hash, now: Timestamp) -> Result<Option<Code>, Error> {
        let unused = t::table
            .filter(t::hash.eq(hash.as_bytes()))
            .filter(t::used_at.is_null())
            .filter(t::expires_at.gt(now.micros()));
        let take = diesel::update(unused)
            .set(t::used_at.eq(now.micros()))
            .returning(t::all_columns);
        struct TakeCode;
        let take = Named::<TakeCode, _>::new(take);
        let row = on_own_backend!(self.connection, |inner| take.get_result(inner));
        let row: Option<Row> = row.optional()?;
        Ok(row.map(code))
    }

    /// Returns a code that was used before.
    ///
    /// # Errors
    /// [`Error`].
    pub fn find_used_code(&mut self, hash: &Hash) -> Result<Option<Code>, Error> {
        let row: Option<Row> = t::table
            .filter(t::hash.eq(hash.as_bytes()))
            .filter(t::used_at.is_not_null())
            .first(self.connection)
            .optional()?;
        Ok(row.map(code))
    }

    /// Returns whether the code was ever issued.
    ///
    /// # Errors
    /// [`Error`].
    pub fn has_code(&mut self, hash: &Hash) -> Result<bool, Error> {
        Ok(
            diesel::select(diesel::dsl::exists(t::table.find(hash.as_bytes())))
                .get_result(self.connection)?,
        )
    }
}
