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
        self.insert(record, None, now)
    }

    /// Puts an access token on the blocklist until it expires.
    ///
    /// # Errors
    /// [`Error`].
    pub fn revoke_token(
        &mut self,
        jti: &str,
        expires_at: Timestamp,
        reason: &str,
        actor: &str,
        now: Timestamp,
    ) -> Result<(), Error> {
        let record = Record {
            kind: Kind::Token,
            value: jti,
            floor: 0,
            reason,
            actor,
        };
        self.insert(&record, Some(expires_at), now)
    }

    fn insert(
        &mut self,
        record: &Record<'_>,
        token_exp: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(), Error> {
        let id = crate::id::uuid(&crate::secret::Entropy::system(), now);
        diesel::insert_into(t::table)
            .values((
                t::id.eq(id),
                t::kind.eq(record.kind.letter().to_string()),
                t::value.eq(record.value),
                t::floor.eq(record.floor),
                t::token_exp.eq(token_exp.map(Timestamp::micros)),
                t::reason.eq(record.reason),
                t::actor.eq(record.actor),
                t::created_at.eq(now.micros()),
            ))
            .execute(self.0)?;
        self.1 = true;
        Ok(())
    }
}
