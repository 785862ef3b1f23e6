//! The tables `users` and `passwords`.

use std::collections::BTreeSet;

use diesel::sql_types::{BigInt, Text};
use diesel::{
    ExpressionMethods, JoinOnDsl, NullableExpressionMethods, OptionalExtension, QueryDsl,
    RunQueryDsl,
};
use portcullis_verifier::Kind;

use super::connection::AnyConnection;
use super::logout_notifications::Ended;
use super::revocations::Record;
use super::schema::{known_devices, passwords as p, users as t};
use super::{Error, Transaction, unreadable};
use crate::accounts::user::{User, Username};
use crate::audit::{Actor, RevocationReason};
use crate::id::UserId;
use crate::time::Timestamp;

type Row = (
    String,
    String,
    Option<String>,
    Option<String>,
    bool,
    String,
    i64,
    Option<i64>,
    i64,
    i64,
);

#[derive(diesel::QueryableByName)]
struct Id {
    #[diesel(sql_type = Text)]
    #[allow(dead_code, reason = "only the existence of the row matters")]
    id: String,
}

fn user(row: Row) -> Result<User, Error> {
    let (id, username, name, email, email_verified, claims, epoch, disabled, created, updated) =
        row;
    Ok(User {
        username: Username::from_stored(username),
        name,
        email,
        email_verified,
        claims: serde_json::from_str(&claims).map_err(|_| unreadable("users", "claims", &id))?,
        auth_epoch: epoch,
        disabled_at: disabled.map(Timestamp::from_micros),
        created_at: Timestamp::from_micros(created),
        updated_at: Timestamp::from_micros(updated),
        id: UserId::from(id),
    })
}

impl Transaction<'_> {
    /// Returns the user of a name, disabled or not, with the hash of the password.
    ///
    /// # Errors
    /// [`Error`].
    pub fn find_credentials(
        &mut self,
        username: &Username,
    ) -> Result<Option<(User, Option<String>)>, Error> {
        let row: Option<(Row, Option<String>)> = t::table
            .left_join(p::table.on(p::user_id.eq(t::id)))
            .filter(t::username.eq(username.as_str()))
            .select((t::all_columns, p::phc.nullable()))
            .first(self.connection)
            .optional()?;
        row.map(|(row, phc)| Ok((user(row)?, phc))).transpose()
    }

    /// Returns a user by id.
    ///
    /// # Errors
    /// [`Error`].
    pub fn find_user(&mut self, id: &UserId) -> Result<Option<User>, Error> {
        let row: Option<Row> = t::table
            .find(id.as_str())
            .first(self.connection)
            .optional()?;
        row.map(user).transpose()
    }

    /// Returns all users, by name.
    ///
    /// # Errors
    /// [`Error`].
    pub fn list_users(&mut self) -> Result<Vec<User>, Error> {
        let rows: Vec<Row> = t::table.order(t::username).load(self.connection)?;
        rows.into_iter().map(user).collect()
    }

    /// Returns the users that have a password.
    ///
    /// # Errors
    /// [`Error`].
    pub fn list_users_with_password(&mut self) -> Result<BTreeSet<UserId>, Error> {
        let ids: Vec<String> = p::table.select(p::user_id).load(self.connection)?;
        Ok(ids.into_iter().map(UserId::from).collect())
    }

    /// Adds a user.
    ///
    /// # Errors
    /// [`Error::Duplicate`] when the name is taken.
    pub fn put_user(&mut self, user: &User) -> Result<(), Error> {
        diesel::insert_into(t::table)
            .values((
                t::id.eq(user.id.as_str()),
                t::username.eq(user.username.as_str()),
                t::name.eq(&user.name),
                t::email.eq(&user.email),
                t::email_verified.eq(user.email_verified),
                t::claims.eq(serde_json::Value::from(user.claims.clone()).to_string()),
                t::auth_epoch.eq(user.auth_epoch),
                t::created_at.eq(user.created_at.micros()),
                t::updated_at.eq(user.created_at.micros()),
            ))
            .execute(self.connection)?;
        Ok(())
    }

    /// Replaces the profile of a user. Returns `false` if the user does not exist. User name, state and
    /// auth epoch have their own statements.
    ///
    /// # Errors
    /// [`Error`].
    pub fn update_user(&mut self, user: &User, now: Timestamp) -> Result<bool, Error> {
        let rows = diesel::update(t::table.find(user.id.as_str()))
            .set((
                t::name.eq(&user.name),
                t::email.eq(&user.email),
                t::email_verified.eq(user.email_verified),
                t::claims.eq(serde_json::Value::from(user.claims.clone()).to_string()),
                t::updated_at.eq(now.micros()),
            ))
            .execute(self.connection)?;
        Ok(rows == 1)
    }

    /// Stores the hash of a new password. A new hash of the same password is for
    /// [`Transaction::renew_password_hash`].
    ///
    /// # Errors
    /// [`Error`].
    pub fn put_password(&mut self, id: &UserId, phc: &str, now: Timestamp) -> Result<(), Error> {
        diesel::sql_query(
            "INSERT INTO passwords (user_id, phc, set_at) VALUES ($1, $2, $3)
             ON CONFLICT (user_id) DO UPDATE SET phc = excluded.phc, set_at = excluded.set_at",
        )
        .bind::<Text, _>(id.as_str())
        .bind::<Text, _>(phc)
        .bind::<BigInt, _>(now.micros())
        .execute(self.connection)?;
        Ok(())
    }

    /// Replaces the hash `old` of a password with another one of the same password. Returns `false` when the
    /// stored hash is no longer `old`: then the password may have been replaced as well.
    ///
    /// # Errors
    /// [`Error`].
    pub fn renew_password_hash(
        &mut self,
        id: &UserId,
        old: &str,
        new: &str,
    ) -> Result<bool, Error> {
        let unchanged = p::table.find(id.as_str()).filter(p::phc.eq(old));
        let rows = diesel::update(unchanged)
            .set(p::phc.eq(new))
            .execute(self.connection)?;
        Ok(rows == 1)
    }

    /// Returns whether a user still has the auth epoch `epoch` and is not disabled. Until this
    /// transaction ends, nothing changes that: on PostgreSQL the row is locked, and an embedded
    /// database has one writer.
    ///
    /// # Errors
    /// [`Error`].
    pub fn holds_auth_epoch(&mut self, id: &UserId, epoch: i64) -> Result<bool, Error> {
        let query = match &*self.connection {
            AnyConnection::Sqlite(_) => {
                "SELECT id FROM users WHERE id = $1 AND auth_epoch = $2 AND disabled_at IS NULL"
            }
            #[cfg(feature = "postgres")]
            AnyConnection::Postgres(_) => {
                "SELECT id FROM users WHERE id = $1 AND auth_epoch = $2 AND disabled_at IS NULL FOR SHARE"
            }
        };
        let rows = diesel::sql_query(query)
            .bind::<Text, _>(id.as_str())
            .bind::<BigInt, _>(epoch)
            .load::<Id>(self.connection)?;
        Ok(!rows.is_empty())
    }

    /// Revokes everything that a user holds: raises the auth epoch, so that every older session, code,
    /// grant and token becomes inactive, and inserts the revocation record.
    ///
    /// # Errors
    /// [`Error`].
    pub fn revoke_all_for_user(
        &mut self,
        id: &UserId,
        reason: &RevocationReason,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(), Error> {
        let floor: i64 = diesel::update(t::table.find(id.as_str()))
            .set((
                t::auth_epoch.eq(t::auth_epoch + 1),
                t::updated_at.eq(now.micros()),
            ))
            .returning(t::auth_epoch)
            .get_result(self.connection)?;
        self.put_logout_notifications(Ended::User(id, floor - 1), now)?;
        // A browser that knew the old password is not a known one.
        diesel::delete(known_devices::table.filter(known_devices::user_id.eq(id.as_str())))
            .execute(self.connection)?;
        let record = Record {
            kind: Kind::User,
            value: id.as_str(),
            floor,
            reason,
            actor,
        };
        self.put_revocation(&record, now)
    }

    /// Disables an account and revokes everything that it holds. Returns `false` if it was disabled before.
    ///
    /// # Errors
    /// [`Error`].
    pub fn disable_user(
        &mut self,
        id: &UserId,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<bool, Error> {
        let rows = diesel::update(
            t::table
                .filter(t::id.eq(id.as_str()))
                .filter(t::disabled_at.is_null()),
        )
        .set(t::disabled_at.eq(now.micros()))
        .execute(self.connection)?;
        if rows == 1 {
            self.revoke_all_for_user(id, &RevocationReason::Disabled, actor, now)?;
        }
        Ok(rows == 1)
    }

    /// Enables an account. What it held before stays revoked. Returns `false` if it was not disabled.
    ///
    /// # Errors
    /// [`Error`].
    pub fn enable_user(&mut self, id: &UserId) -> Result<bool, Error> {
        let rows = diesel::update(
            t::table
                .filter(t::id.eq(id.as_str()))
                .filter(t::disabled_at.is_not_null()),
        )
        .set(t::disabled_at.eq(None::<i64>))
        .execute(self.connection)?;
        Ok(rows == 1)
    }
}
