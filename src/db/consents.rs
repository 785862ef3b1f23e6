//! `consents`: one active row per user and client.

use diesel::sql_types::{BigInt, Binary, Text};
use diesel::{ExpressionMethods, JoinOnDsl, OptionalExtension, QueryDsl, RunQueryDsl};

use super::schema::{clients, consents as t, grants};
use super::{Error, Transaction};
use crate::accounts::consent::Consent;
use crate::audit::{Actor, RevocationReason};
use crate::id::{ClientId, ConsentId, GrantId, UserId};
use crate::secret::Hash;
use crate::time::Timestamp;

type Row = (
    String,
    String,
    String,
    String,
    Vec<u8>,
    i64,
    i64,
    Option<i64>,
);

fn consent((id, user_id, client_id, scope, shape, granted_at, expires_at, _): Row) -> Consent {
    Consent {
        id: ConsentId::from(id),
        user_id: UserId::from(user_id),
        client_id: ClientId::from(client_id),
        scope,
        client_shape: Hash::from_bytes(shape),
        granted_at: Timestamp::from_micros(granted_at),
        expires_at: Timestamp::from_micros(expires_at),
    }
}

impl Transaction<'_> {
    /// Returns the consent of a user to a client.
    ///
    /// # Errors
    /// [`Error`].
    pub fn find_consent(
        &mut self,
        user: &UserId,
        client: &ClientId,
    ) -> Result<Option<Consent>, Error> {
        let row: Option<Row> = t::table
            .filter(t::user_id.eq(user.as_str()))
            .filter(t::client_id.eq(client.as_str()))
            .filter(t::ended_at.is_null())
            .first(self.connection)
            .optional()?;
        Ok(row.map(consent))
    }

    /// Returns the consents of a user that are neither withdrawn nor expired, with the names of the clients.
    ///
    /// # Errors
    /// [`Error`].
    pub fn list_consents(
        &mut self,
        user: &UserId,
        now: Timestamp,
    ) -> Result<Vec<(Consent, String)>, Error> {
        let rows: Vec<(Row, String)> = t::table
            .inner_join(clients::table.on(clients::id.eq(t::client_id)))
            .filter(t::user_id.eq(user.as_str()))
            .filter(t::ended_at.is_null())
            .filter(t::expires_at.gt(now.micros()))
            .filter(clients::deleted_at.is_null())
            .order((clients::name, t::id))
            .select((t::all_columns, clients::name))
            .load(self.connection)?;
        Ok(rows
            .into_iter()
            .map(|(row, name)| (consent(row), name))
            .collect())
    }

    /// Withdraws a consent of a user and revokes every grant that depends on it. Returns the client, or
    /// `None` if the consent is not of this user or was withdrawn before.
    ///
    /// # Errors
    /// [`Error`].
    pub fn withdraw_consent(
        &mut self,
        id: &ConsentId,
        user: &UserId,
        now: Timestamp,
    ) -> Result<Option<ClientId>, Error> {
        let client: Option<String> = diesel::update(
            t::table
                .filter(t::id.eq(id.as_str()))
                .filter(t::user_id.eq(user.as_str()))
                .filter(t::ended_at.is_null()),
        )
        .set(t::ended_at.eq(now.micros()))
        .returning(t::client_id)
        .get_result(self.connection)
        .optional()?;
        let Some(client) = client else {
            return Ok(None);
        };
        let dependent: Vec<String> = grants::table
            .filter(grants::consent_id.eq(id.as_str()))
            .filter(grants::ended_at.is_null())
            .select(grants::id)
            .load(self.connection)?;
        let actor = Actor::User(user.clone());
        for grant in dependent {
            self.revoke_grant(
                &GrantId::from(grant),
                &RevocationReason::ConsentWithdrawn,
                &actor,
                now,
            )?;
        }
        Ok(Some(ClientId::from(client)))
    }

    /// Stores a consent. An active one of the same user and client keeps its id, because grants refer to it.
    /// Concurrent requests result in one row.
    ///
    /// # Errors
    /// [`Error`].
    pub fn put_consent(&mut self, consent: &Consent) -> Result<(), Error> {
        const UPSERT: &str = "
            INSERT INTO consents (id, user_id, client_id, scope, client_shape, granted_at, expires_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7)
            ON CONFLICT (user_id, client_id) WHERE ended_at IS NULL DO UPDATE SET
                scope = excluded.scope, client_shape = excluded.client_shape,
                granted_at = excluded.granted_at, expires_at = excluded.expires_at";
        diesel::sql_query(UPSERT)
            .bind::<Text, _>(consent.id.as_str())
            .bind::<Text, _>(consent.user_id.as_str())
            .bind::<Text, _>(consent.client_id.as_str())
            .bind::<Text, _>(&consent.scope)
            .bind::<Binary, _>(consent.client_shape.as_bytes())
            .bind::<BigInt, _>(consent.granted_at.micros())
            .bind::<BigInt, _>(consent.expires_at.micros())
            .execute(self.connection)?;
        Ok(())
    }
}
