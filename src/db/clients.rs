//! The table `clients`.

use std::collections::HashSet;

use diesel::{
    BoolExpressionMethods, ExpressionMethods, JoinOnDsl, NullableExpressionMethods,
    OptionalExtension, QueryDsl, RunQueryDsl,
};
use portcullis_verifier::Kind;

use super::client_row::{Columns, Row};
use super::revocations::Record;
use super::schema::{client_secrets as s, clients as t, feed_head};
use super::{Error, Transaction, client_secrets};
use crate::audit::{Actor, RevocationReason};
use crate::id::ClientId;
use crate::keys::Alg;
use crate::oauth::client::{Client, Registration};
use crate::time::Timestamp;

impl Transaction<'_> {
    /// Returns a client that is not disabled, with its secrets, in one statement.
    ///
    /// # Errors
    /// [`Error`].
    pub fn find_client(&mut self, id: &ClientId) -> Result<Option<Client>, Error> {
        let client = self.find_registered(id)?;
        Ok(client.filter(|client| client.disabled_at.is_none()))
    }

    /// Returns a client with its secrets, disabled or not, unless it was deleted.
    ///
    /// # Errors
    /// [`Error`].
    pub fn find_registered(&mut self, id: &ClientId) -> Result<Option<Client>, Error> {
        let rows: Vec<(Row, Option<client_secrets::Row>)> = t::table
            .left_join(s::table.on(s::client_id.eq(t::id)))
            .filter(t::id.eq(id.as_str()))
            .filter(t::deleted_at.is_null())
            .order((s::created_at, s::id))
            .select((t::all_columns, s::all_columns.nullable()))
            .load(self.connection)?;
        let mut secrets = Vec::new();
        let mut client = None;
        for (row, secret) in rows {
            secrets.extend(secret.map(client_secrets::client_secret));
            client = Some(row);
        }
        client.map(|row| row.client(secrets)).transpose()
    }

    /// Returns a client that is not disabled, with everything that its token requests need.
    ///
    /// # Errors
    /// [`Error`].
    pub fn find_registration(&mut self, id: &ClientId) -> Result<Option<Registration>, Error> {
        let client = self.find_client(id)?;
        client
            .map(|client| self.registration_of(client))
            .transpose()
    }

    /// Returns a client with everything that its token requests need.
    ///
    /// # Errors
    /// [`Error`].
    pub fn registration_of(&mut self, client: Client) -> Result<Registration, Error> {
        Ok(Registration {
            max_age: self
                .find_resources(&client.serves)?
                .iter()
                .map(|resource| resource.max_age)
                .min()
                .unwrap_or_default(),
            resources: self.find_resources(&client.resources)?,
            feed_epoch: self.feed_epoch()?,
            client,
        })
    }

    /// Returns all clients that were not deleted, by name, without their secrets. Disabled ones are
    /// included.
    ///
    /// # Errors
    /// [`Error`].
    pub fn list_clients(&mut self) -> Result<Vec<Client>, Error> {
        let rows: Vec<Row> = t::table
            .filter(t::deleted_at.is_null())
            .order((t::name, t::id))
            .load(self.connection)?;
        rows.into_iter().map(|row| row.client(Vec::new())).collect()
    }

    /// Returns a client whose ID tokens or userinfo responses are signed with an algorithm that `offered`
    /// omits, if there is one.
    ///
    /// # Errors
    /// [`Error`].
    pub fn find_client_beyond(&mut self, offered: &[Alg]) -> Result<Option<ClientId>, Error> {
        let names: Vec<_> = offered.iter().map(|alg| alg.name()).collect();
        let signed = t::userinfo_alg.is_not_null();
        let beyond = t::id_token_alg
            .ne_all(&names)
            .or(signed.and(t::userinfo_alg.assume_not_null().ne_all(&names)));
        let found: Option<String> = t::table
            .filter(t::deleted_at.is_null())
            .filter(beyond)
            .select(t::id)
            .first(self.connection)
            .optional()?;
        Ok(found.map(ClientId::from))
    }

    /// Returns the resource servers that are not disabled, with their auth epochs.
    ///
    /// # Errors
    /// [`Error`].
    pub fn list_subscribers(&mut self) -> Result<Vec<(ClientId, i64)>, Error> {
        let rows: Vec<(String, i64)> = t::table
            .filter(t::disabled_at.is_null())
            .filter(t::deleted_at.is_null())
            .filter(t::serves.ne("[]"))
            .select((t::id, t::auth_epoch))
            .load(self.connection)?;
        let subscriber = |(id, epoch)| (ClientId::from(id), epoch);
        Ok(rows.into_iter().map(subscriber).collect())
    }

    /// Registers a client with its secrets.
    ///
    /// # Errors
    /// [`Error::Duplicate`] when the id is taken.
    pub fn put_client(&mut self, client: &Client) -> Result<(), Error> {
        diesel::insert_into(t::table)
            .values((
                t::id.eq(client.id.as_str()),
                t::auth_epoch.eq(client.auth_epoch),
                t::created_at.eq(client.created_at.micros()),
                Columns::of(client),
            ))
            .execute(self.connection)?;
        for secret in &client.secrets {
            self.put_client_secret(&client.id, secret)?;
        }
        self.raise_config_version()
    }

    /// Replaces a registration. Returns `false` if the client does not exist. This revokes nothing; for a
    /// client with fewer rights than before, call [`Transaction::revoke_all_for_client`].
    ///
    /// # Errors
    /// [`Error`].
    pub fn update_client(&mut self, client: &Client) -> Result<bool, Error> {
        let rows = diesel::update(
            t::table
                .filter(t::id.eq(client.id.as_str()))
                .filter(t::deleted_at.is_null()),
        )
        .set(Columns::of(client))
        .execute(self.connection)?;
        self.raise_config_version()?;
        Ok(rows == 1)
    }

    /// Revokes everything that a client holds: raises its auth epoch, so that every older code, grant and
    /// token becomes inactive, and inserts the revocation record. Returns `false` if the client does not
    /// exist.
    ///
    /// # Errors
    /// [`Error`].
    pub fn revoke_all_for_client(
        &mut self,
        id: &ClientId,
        reason: &RevocationReason,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<bool, Error> {
        let floor: Option<i64> = diesel::update(t::table.find(id.as_str()))
            .set(t::auth_epoch.eq(t::auth_epoch + 1))
            .returning(t::auth_epoch)
            .get_result(self.connection)
            .optional()?;
        let Some(floor) = floor else {
            return Ok(false);
        };
        let record = Record {
            kind: Kind::Client,
            value: id.as_str(),
            floor,
            reason,
            actor,
        };
        self.put_revocation(&record, now)?;
        self.raise_config_version()?;
        Ok(true)
    }

    /// Disables a client and revokes everything that it holds. Returns `false` if it was disabled before.
    ///
    /// # Errors
    /// [`Error`].
    pub fn disable_client(
        &mut self,
        id: &ClientId,
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
        Ok(rows == 1 && self.revoke_all_for_client(id, &RevocationReason::Disabled, actor, now)?)
    }

    /// Enables a client. What it held before stays revoked. Returns `false` if it was not disabled.
    ///
    /// # Errors
    /// [`Error`].
    pub fn enable_client(&mut self, id: &ClientId) -> Result<bool, Error> {
        let rows = diesel::update(
            t::table
                .filter(t::id.eq(id.as_str()))
                .filter(t::disabled_at.is_not_null())
                .filter(t::deleted_at.is_null()),
        )
        .set(t::disabled_at.eq(None::<i64>))
        .execute(self.connection)?;
        self.raise_config_version()?;
        Ok(rows == 1)
    }

    /// Deletes a client: revokes everything that it holds and removes its secrets. Its id is never assigned
    /// again. Returns `false` if the client does not exist.
    ///
    /// # Errors
    /// [`Error`].
    pub fn delete_client(
        &mut self,
        id: &ClientId,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<bool, Error> {
        let rows = diesel::update(
            t::table
                .filter(t::id.eq(id.as_str()))
                .filter(t::deleted_at.is_null()),
        )
        .set((
            t::deleted_at.eq(now.micros()),
            t::disabled_at.eq(now.micros()),
        ))
        .execute(self.connection)?;
        if rows == 0 {
            return Ok(false);
        }
        diesel::delete(s::table.filter(s::client_id.eq(id.as_str()))).execute(self.connection)?;
        self.revoke_all_for_client(id, &RevocationReason::Deleted, actor, now)
    }

    /// Returns a client to be changed, deleted ones too. Until this transaction ends, nothing else changes
    /// it: on PostgreSQL its row is locked, and an embedded database has one writer.
    ///
    /// # Errors
    /// [`Error`].
    pub fn find_registered_to_change(&mut self, id: &ClientId) -> Result<Option<Client>, Error> {
        self.lock_row(
            "SELECT id FROM clients WHERE id = $1 FOR UPDATE",
            id.as_str(),
        )?;
        self.find_registered(id)
    }

    /// Raises the version by which nodes detect that clients or resources changed.
    pub(super) fn raise_config_version(&mut self) -> Result<(), Error> {
        diesel::update(feed_head::table)
            .set(feed_head::config_version.eq(feed_head::config_version + 1))
            .execute(self.connection)?;
        Ok(())
    }

    /// Returns the origins that enabled clients have registered for cross-origin calls.
    ///
    /// # Errors
    /// [`Error`].
    pub fn list_cors_origins(&mut self) -> Result<HashSet<String>, Error> {
        let lists: Vec<String> = t::table
            .filter(t::disabled_at.is_null())
            .filter(t::cors_origins.ne("[]"))
            .select(t::cors_origins)
            .load(self.connection)?;
        let parsed = lists
            .iter()
            .filter_map(|text| serde_json::from_str::<Vec<String>>(text).ok());
        Ok(parsed.flatten().collect())
    }
}
