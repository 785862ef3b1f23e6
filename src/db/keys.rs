//! `signing_keys` and `server_secrets`. Every update is a compare-and-swap on the sealed value, and
//! each change of a row raises `keys_version` in the same transaction.

use std::collections::HashSet;

use diesel::{BoolExpressionMethods, ExpressionMethods, QueryDsl, RunQueryDsl};
use portcullis_verifier::Kind;

use super::revocations::Record;
use super::schema::{feed_head as h, revocations as r, server_secrets as s, signing_keys as t};
use super::{Error, Transaction, unreadable};
use crate::audit::{Actor, RevocationReason};
use crate::config::limits::KEY_RECORD_KEPT;
use crate::keys::{Alg, SealedSecret, SigningKey, Use};
use crate::time::Timestamp;

type Row = (
    String,
    String,
    String,
    String,
    i64,
    String,
    String,
    i64,
    i64,
    Option<i64>,
    Option<i64>,
    Option<i64>,
    Option<String>,
    i64,
);

fn signing_key(row: Row) -> Result<SigningKey, Error> {
    let (
        kid,
        issuer,
        use_,
        alg,
        generation,
        public_jwk,
        sealed,
        publish,
        activate,
        retire,
        remove,
        revoked,
        reason,
        created,
    ) = row;
    let broken = |column| unreadable("signing_keys", column, &kid);
    Ok(SigningKey {
        use_: Use::parse(&use_).ok_or_else(|| broken("use"))?,
        alg: Alg::from_name(&alg).ok_or_else(|| broken("alg"))?,
        issuer,
        generation,
        public_jwk,
        sealed,
        publish_at: Timestamp::from_micros(publish),
        activate_at: Timestamp::from_micros(activate),
        retire_at: retire.map(Timestamp::from_micros),
        remove_at: remove.map(Timestamp::from_micros),
        revoked_at: revoked.map(Timestamp::from_micros),
        revoke_reason: reason,
        created_at: Timestamp::from_micros(created),
        kid,
    })
}

impl Transaction<'_> {
    /// Returns all keys of an issuer, by ring and generation.
    ///
    /// # Errors
    /// [`Error`].
    pub fn list_keys(&mut self, issuer: &str) -> Result<Vec<SigningKey>, Error> {
        let rows: Vec<Row> = t::table
            .filter(t::issuer.eq(issuer))
            .order((t::use_, t::alg, t::generation))
            .load(self.connection)?;
        rows.into_iter().map(signing_key).collect()
    }

    /// Inserts a key.
    ///
    /// # Errors
    /// [`Error::Duplicate`] if another node created this generation first.
    pub fn put_key(&mut self, key: &SigningKey) -> Result<(), Error> {
        diesel::insert_into(t::table)
            .values((
                t::kid.eq(&key.kid),
                t::issuer.eq(&key.issuer),
                t::use_.eq(key.use_.as_str()),
                t::alg.eq(key.alg.name()),
                t::generation.eq(key.generation),
                t::public_jwk.eq(&key.public_jwk),
                t::sealed.eq(&key.sealed),
                t::publish_at.eq(key.publish_at.micros()),
                t::activate_at.eq(key.activate_at.micros()),
                t::retire_at.eq(key.retire_at.map(Timestamp::micros)),
                t::remove_at.eq(key.remove_at.map(Timestamp::micros)),
                t::created_at.eq(key.created_at.micros()),
            ))
            .execute(self.connection)?;
        Ok(())
    }

    /// Replaces the row that is still sealed as `old`. A revocation is never undone, even one that an
    /// operator wrote into the table by hand.
    ///
    /// # Errors
    /// [`Error::Overtaken`] if the row was changed in the meantime.
    pub fn swap_key(&mut self, old: &str, new: &SigningKey) -> Result<(), Error> {
        let revoked = new.revoked_at.map_or(-1, Timestamp::micros);
        let row = t::table
            .filter(t::kid.eq(&new.kid))
            .filter(t::sealed.eq(old))
            .filter(t::revoked_at.is_null().or(t::revoked_at.eq(revoked)));
        let swapped = diesel::update(row)
            .set((
                t::sealed.eq(&new.sealed),
                t::activate_at.eq(new.activate_at.micros()),
                t::retire_at.eq(new.retire_at.map(Timestamp::micros)),
                t::remove_at.eq(new.remove_at.map(Timestamp::micros)),
                t::revoked_at.eq(new.revoked_at.map(Timestamp::micros)),
                t::revoke_reason.eq(&new.revoke_reason),
            ))
            .execute(self.connection)?;
        match swapped {
            1 => Ok(()),
            _ => Err(Error::Overtaken(format!("signing_keys {}", new.kid))),
        }
    }

    /// Inserts the revocation record of a key, which rejects every token with its kid.
    ///
    /// # Errors
    /// [`Error`].
    pub fn block_key(
        &mut self,
        kid: &str,
        reason: &RevocationReason,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(), Error> {
        let record = Record {
            kind: Kind::Key,
            value: kid,
            floor: 0,
            reason,
            actor,
        };
        self.put_revocation(&record, now)
    }

    /// Returns the kids of revoked keys.
    ///
    /// # Errors
    /// [`Error`].
    pub fn list_blocked_kids(&mut self, now: Timestamp) -> Result<HashSet<String>, Error> {
        let kids: Vec<String> = r::table
            .filter(r::kind.eq("K"))
            .filter(r::created_at.gt((now - KEY_RECORD_KEPT).micros()))
            .select(r::value)
            .load(self.connection)?;
        Ok(kids.into_iter().collect())
    }

    /// Returns the version of the keys, which each change raises.
    ///
    /// # Errors
    /// [`Error`].
    pub fn keys_version(&mut self) -> Result<i64, Error> {
        Ok(h::table.select(h::keys_version).first(self.connection)?)
    }

    /// Raises the version by which nodes detect a change of keys.
    ///
    /// # Errors
    /// [`Error`].
    pub fn raise_keys_version(&mut self) -> Result<(), Error> {
        diesel::update(h::table)
            .set(h::keys_version.eq(h::keys_version + 1))
            .execute(self.connection)?;
        Ok(())
    }

    /// Returns all server secrets, the oldest first.
    ///
    /// # Errors
    /// [`Error`].
    pub fn list_server_secrets(&mut self) -> Result<Vec<SealedSecret>, Error> {
        let rows: Vec<(String, i64, String, i64)> =
            s::table.order(s::generation).load(self.connection)?;
        let secret = |(id, generation, sealed, created_at)| SealedSecret {
            id,
            generation,
            sealed,
            created_at: Timestamp::from_micros(created_at),
        };
        Ok(rows.into_iter().map(secret).collect())
    }

    /// Replaces the server secret that is still sealed as `old`.
    ///
    /// # Errors
    /// [`Error::Overtaken`] if the row was changed in the meantime.
    pub fn swap_server_secret(&mut self, old: &str, new: &SealedSecret) -> Result<(), Error> {
        let swapped = diesel::update(s::table.filter(s::id.eq(&new.id)).filter(s::sealed.eq(old)))
            .set(s::sealed.eq(&new.sealed))
            .execute(self.connection)?;
        match swapped {
            1 => Ok(()),
            _ => Err(Error::Overtaken(format!("server_secrets {}", new.id))),
        }
    }

    /// Inserts a server secret.
    ///
    /// # Errors
    /// [`Error::Duplicate`] if another node created this generation first.
    pub fn put_server_secret(&mut self, secret: &SealedSecret) -> Result<(), Error> {
        diesel::insert_into(s::table)
            .values((
                s::id.eq(&secret.id),
                s::generation.eq(secret.generation),
                s::sealed.eq(&secret.sealed),
                s::created_at.eq(secret.created_at.micros()),
            ))
            .execute(self.connection)?;
        Ok(())
    }
}
