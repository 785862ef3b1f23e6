//! `revocations`: records of what was revoked. A change that revokes something inserts its record in the
//! same transaction; the sequencer numbers it later.

use diesel::{ExpressionMethods, RunQueryDsl};
use portcullis_verifier::Kind;

use super::schema::revocations as t;
use super::{Error, Transaction};
use crate::audit::{Actor, RevocationReason};
use crate::time::Timestamp;

/// A revocation record before it is numbered.
#[derive(Debug)]
pub struct Record<'a> {
    /// The kind of what is revoked.
    pub kind: Kind,
    /// Its id.
    pub value: &'a str,
    /// For a user or a client: tokens with a lower auth epoch are revoked.
    pub floor: i64,
    /// Why it was revoked.
    pub reason: &'a RevocationReason,
    /// Who revoked it.
    pub actor: &'a Actor,
}

impl Transaction<'_> {
    /// Inserts a revocation record.
    ///
    /// # Errors
    /// [`Error`].
    pub fn put_revocation(&mut self, record: &Record<'_>, now: Timestamp) -> Result<(), Error> {
        self.insert(record, None, now)
    }

    /// Revokes an access token until it expires.
    ///
    /// # Errors
    /// [`Error`].
    pub fn revoke_token(
        &mut self,
        jti: &str,
        expires_at: Timestamp,
        reason: &RevocationReason,
        actor: &Actor,
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
        let id = crate::id::uuid(self.entropy, now);
        diesel::insert_into(t::table)
            .values((
                t::id.eq(id),
                t::kind.eq(record.kind.letter().to_string()),
                t::value.eq(record.value),
                t::floor.eq(record.floor),
                t::token_exp.eq(token_exp.map(Timestamp::micros)),
                t::reason.eq(record.reason.as_str()),
                t::actor.eq(record.actor.to_string()),
                t::created_at.eq(now.micros()),
            ))
            .execute(self.connection)?;
        self.has_revoked = true;
        Ok(())
    }
}
