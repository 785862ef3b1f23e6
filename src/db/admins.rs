//! `user_roles` and `setup_links`: administrators, and the links that create the first one.

use diesel::{ExpressionMethods, QueryDsl, RunQueryDsl};

use super::schema::{clients, setup_links as l, user_roles as t};
use super::{Error, Transaction, unreadable};
use crate::accounts::admin::{Admin, GrantedBy};
use crate::id::UserId;
use crate::secret::Hash;
use crate::time::Timestamp;

/// The only role.
const ADMIN: &str = "admin";

type Row = (String, String, String, i64, Option<i64>);

fn admin((user_id, _, by, granted_at, expires_at): Row) -> Result<Admin, Error> {
    Ok(Admin {
        granted_by: GrantedBy::parse(&by)
            .ok_or_else(|| unreadable("user_roles", "granted_by", &user_id))?,
        granted_at: Timestamp::from_micros(granted_at),
        expires_at: expires_at.map(Timestamp::from_micros),
        user_id: UserId::from(user_id),
    })
}

impl Transaction<'_> {
    /// Returns all administrators, including expired ones.
    ///
    /// # Errors
    /// [`Error`].
    pub fn list_admins(&mut self) -> Result<Vec<Admin>, Error> {
        let rows: Vec<Row> = t::table
            .filter(t::role.eq(ADMIN))
            .order(t::granted_at)
            .load(self.connection)?;
        rows.into_iter().map(admin).collect()
    }

    /// Returns whether there is an administrator at `now`.
    ///
    /// # Errors
    /// [`Error`].
    pub fn has_admin(&mut self, now: Timestamp) -> Result<bool, Error> {
        let admins = self.list_admins()?;
        Ok(admins.iter().any(|admin| admin.is_live(now)))
    }

    /// Makes a user an administrator.
    ///
    /// # Errors
    /// [`Error::Duplicate`] if the user is one, or if another first administrator was created before.
    pub fn put_admin(&mut self, admin: &Admin) -> Result<(), Error> {
        diesel::insert_into(t::table)
            .values((
                t::user_id.eq(admin.user_id.as_str()),
                t::role.eq(ADMIN),
                t::granted_by.eq(admin.granted_by.as_str()),
                t::granted_at.eq(admin.granted_at.micros()),
                t::expires_at.eq(admin.expires_at.map(Timestamp::micros)),
            ))
            .execute(self.connection)?;
        Ok(())
    }

    /// Inserts a set-up link, and removes expired ones.
    ///
    /// # Errors
    /// [`Error`].
    pub fn put_setup_link(
        &mut self,
        hash: &Hash,
        now: Timestamp,
        expires_at: Timestamp,
    ) -> Result<(), Error> {
        diesel::delete(l::table.filter(l::expires_at.le(now.micros()))).execute(self.connection)?;
        diesel::insert_into(l::table)
            .values((
                l::hash.eq(hash.as_bytes()),
                l::expires_at.eq(expires_at.micros()),
            ))
            .execute(self.connection)?;
        Ok(())
    }

    /// Binds a set-up link to the browser that opened it. Returns `false` if the link is unknown, expired,
    /// or was opened before.
    ///
    /// # Errors
    /// [`Error`].
    pub fn take_setup_link(
        &mut self,
        hash: &Hash,
        browser: &Hash,
        now: Timestamp,
    ) -> Result<bool, Error> {
        let rows = diesel::update(
            l::table
                .filter(l::hash.eq(hash.as_bytes()))
                .filter(l::browser.is_null())
                .filter(l::expires_at.gt(now.micros())),
        )
        .set(l::browser.eq(browser.as_bytes()))
        .execute(self.connection)?;
        Ok(rows == 1)
    }

    /// Returns whether a browser has opened a set-up link that is still valid.
    ///
    /// # Errors
    /// [`Error`].
    pub fn has_setup_link(&mut self, browser: &Hash, now: Timestamp) -> Result<bool, Error> {
        let rows: i64 = l::table
            .filter(l::browser.eq(browser.as_bytes()))
            .filter(l::used_at.is_null())
            .filter(l::expires_at.gt(now.micros()))
            .count()
            .get_result(self.connection)?;
        Ok(rows == 1)
    }

    /// Uses the set-up link of a browser. Returns `false` if it has no valid one.
    ///
    /// # Errors
    /// [`Error`].
    pub fn use_setup_link(&mut self, browser: &Hash, now: Timestamp) -> Result<bool, Error> {
        let rows = diesel::update(
            l::table
                .filter(l::browser.eq(browser.as_bytes()))
                .filter(l::used_at.is_null())
                .filter(l::expires_at.gt(now.micros())),
        )
        .set(l::used_at.eq(now.micros()))
        .execute(self.connection)?;
        Ok(rows == 1)
    }

    /// Returns whether a client is registered.
    ///
    /// # Errors
    /// [`Error`].
    pub fn has_clients(&mut self) -> Result<bool, Error> {
        let first: Vec<String> = clients::table
            .filter(clients::deleted_at.is_null())
            .select(clients::id)
            .limit(1)
            .load(self.connection)?;
        Ok(!first.is_empty())
    }
}
