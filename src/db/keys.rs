//! `signing_keys` and `server_secrets`.

use diesel::{ExpressionMethods, OptionalExtension, QueryDsl, RunQueryDsl};

use super::schema::{server_secrets as s, signing_keys as t};
use super::{Error, Transaction, unreadable};
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
    /// All keys of an issuer, by ring and generation.
    ///
    /// # Errors
    /// [`Error`].
    pub fn list_keys(&mut self, issuer: &str) -> Result<Vec<SigningKey>, Error> {
        let rows: Vec<Row> = t::table
            .filter(t::issuer.eq(issuer))
            .order((t::use_, t::alg, t::generation))
            .load(self.0)?;
        rows.into_iter().map(signing_key).collect()
    }

    /// Inserts a key.
    ///
    /// # Errors
    /// [`Error::Duplicate`] when another node made this generation first.
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
            .execute(self.0)?;
        Ok(())
    }

    /// The newest server secret.
    ///
    /// # Errors
    /// [`Error`].
    pub fn find_server_secret(&mut self) -> Result<Option<SealedSecret>, Error> {
        let row: Option<(String, i64, String, i64)> = s::table
            .order(s::generation.desc())
            .first(self.0)
            .optional()?;
        Ok(
            row.map(|(id, generation, sealed, created_at)| SealedSecret {
                id,
                generation,
                sealed,
                created_at: Timestamp::from_micros(created_at),
            }),
        )
    }

    /// Inserts a server secret.
    ///
    /// # Errors
    /// [`Error::Duplicate`] when another node made this generation first.
    pub fn put_server_secret(&mut self, secret: &SealedSecret) -> Result<(), Error> {
        diesel::insert_into(s::table)
            .values((
                s::id.eq(&secret.id),
                s::generation.eq(secret.generation),
                s::sealed.eq(&secret.sealed),
                s::created_at.eq(secret.created_at.micros()),
            ))
            .execute(self.0)?;
        Ok(())
    }
}
