//! `revocations`: the blocklist. An act that ends something inserts its record in the same
//! transaction; it is numbered and published later.

use diesel::{ExpressionMethods, RunQueryDsl};
use portcullis_verifier::Kind;

use super::schema::revocations as t;
use super::{Error, Transaction};
use crate::time::Timestamp;

/// A record before it is numbered.
#[derive(Debug)]
pub struct Record<'a> {
    /// What it names.
    pub kind: Kind,
    /// Its id.
    pub value: &'a str,
    /// For a person or a client: tokens with a lower number are dead.
    pub floor: i64,
    /// Why.
    pub reason: &'a str,
    /// Who did it.
    pub actor: &'a str,
}

impl Transaction<'_> {
    /// Puts a record on the blocklist.
    ///
    /// # Errors
    /// [`Error`].
    pub fn put_revocation(&mut self, record: &Record<'_>, now: Timestamp) -> Result<(), Error> {
        let id = crate::id::uuid(&crate::secret::Entropy::system(), now);
        diesel::insert_into(t::table)
            .values((
                t::id.eq(id),
                t::kind.eq(record.kind.letter().to_string()),
                t::value.eq(record.value),
                t::floor.eq(record.floor),
                t::reason.eq(record.reason),
                t::actor.eq(record.actor),
                t::created_at.eq(now.micros()),
            ))
            .execute(self.0)?;
        self.1 = true;
        Ok(())
    }

    /// Puts an access token on the blocklist until it expires.
    ///
    /// # Errors
    /// [`Error`].
    pub fn end_token(
        &mut self,
        jti: &str,
        expires_at: Timestamp,
        actor: &str,
        now: Timestamp,
    ) -> Result<(), Error> {
        let id = crate::id::uuid(&crate::secret::Entropy::system(), now);
        diesel::insert_into(t::table)
            .values((
                t::id.eq(id),
                t::kind.eq(Kind::Token.letter().to_string()),
                t::value.eq(jti),
                t::floor.eq(0),
                t::token_exp.eq(expires_at.micros()),
                t::reason.eq("revoked"),
                t::actor.eq(actor),
                t::created_at.eq(now.micros()),
            ))
            .execute(self.0)?;
        self.1 = true;
        Ok(())
    }
}
