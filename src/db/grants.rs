//! The table `grants`.

use diesel::dsl::{exists, not};
use diesel::{
    BoolExpressionMethods, ExpressionMethods, NullableExpressionMethods, OptionalExtension,
    QueryDsl, RunQueryDsl,
};
use portcullis_verifier::Kind;

use super::prepared::{Named, Prepared};
use super::revocations::Record;
use super::schema::{codes, grants as t};
use super::{Error, Transaction, list, to_list, unreadable};
use crate::audit::{Actor, RevocationReason};
use crate::config::limits::{CLEAN_UP_BATCH, FAMILIES};
use crate::id::{ClientId, ConsentId, GrantId, Sid, UserId};
use crate::oauth::grant::Grant;
use crate::oauth::request::scope::Scope;
use crate::time::Timestamp;

/// A row of `grants`, column by column.
#[derive(diesel::Queryable)]
struct Row {
    id: String,
    client_id: String,
    user_id: String,
    sid: String,
    consent_id: Option<String>,
    offline: bool,
    scope: String,
    resources: String,
    _cnf_jkt: Option<String>,
    auth_time: i64,
    acr: String,
    amr: String,
    client_epoch: i64,
    user_epoch: i64,
    feed_epoch: i64,
    generation: i64,
    rotated_at: i64,
    idle_until: i64,
    expires_at: i64,
    created_at: i64,
    _ended_at: Option<i64>,
}

impl Row {
    fn grant(self) -> Result<Grant, Error> {
        Ok(Grant {
            client_id: ClientId::from(self.client_id),
            user_id: UserId::from(self.user_id),
            sid: Sid::from(self.sid),
            consent_id: self.consent_id.map(ConsentId::from),
            offline: self.offline,
            scope: Scope::parse(&self.scope)
                .map_err(|_| unreadable("grants", "scope", &self.id))?,
            resources: list("grants", "resources", &self.id, &self.resources)?,
            auth_time: Timestamp::from_micros(self.auth_time),
            acr: self.acr,
            amr: self.amr.split(' ').map(str::to_owned).collect(),
            client_epoch: self.client_epoch,
            user_epoch: self.user_epoch,
            feed_epoch: self.feed_epoch,
            created_at: Timestamp::from_micros(self.created_at),
            expires_at: Timestamp::from_micros(self.expires_at),
            idle_until: Timestamp::from_micros(self.idle_until),
            generation: self.generation,
            rotated_at: Timestamp::from_micros(self.rotated_at),
            id: GrantId::from(self.id),
        })
    }
}

impl Transaction<'_> {
    /// Inserts a grant.
    ///
    /// # Errors
    /// [`Error`].
    pub fn put_grant(&mut self, grant: &Grant) -> Result<(), Error> {
        diesel::insert_into(t::table)
            .values((
                (
                    t::id.eq(grant.id.as_str()),
                    t::client_id.eq(grant.client_id.as_str()),
                    t::user_id.eq(grant.user_id.as_str()),
                    t::sid.eq(grant.sid.as_str()),
                    t::consent_id.eq(grant.consent_id.as_ref().map(ConsentId::as_str)),
                    t::offline.eq(grant.offline),
                    t::scope.eq(grant.scope.to_string()),
                    t::resources.eq(to_list(&grant.resources)),
                    t::auth_time.eq(grant.auth_time.micros()),
                    t::acr.eq(&grant.acr),
                ),
                (
                    t::amr.eq(grant.amr.join(" ")),
                    t::client_epoch.eq(grant.client_epoch),
                    t::user_epoch.eq(grant.user_epoch),
                    t::feed_epoch.eq(grant.feed_epoch),
                    t::generation.eq(0),
                    t::rotated_at.eq(grant.created_at.micros()),
                    t::idle_until.eq(grant.idle_until.micros()),
                    t::expires_at.eq(grant.expires_at.micros()),
                    t::created_at.eq(grant.created_at.micros()),
                ),
            ))
            .execute(self.connection)?;
        Ok(())
    }

    /// Returns a grant if it is active, in one statement.
    ///
    /// # Errors
    /// [`Error`].
    pub fn find_active_grant(
        &mut self,
        id: &GrantId,
        now: Timestamp,
    ) -> Result<Option<Grant>, Error> {
        let row: Option<Row> = t::table
            .filter(t::id.eq(id.as_str()))
            .filter(is_grant_active!(now))
            .first(self.connection)
            .optional()?;
        row.map(Row::grant).transpose()
    }

    /// Raises the generation of an active grant from `generation`, in one conditional statement. Of
    /// several concurrent calls with the same generation one succeeds.
    ///
    /// # Errors
    /// [`Error`].
    pub fn rotate_grant(
        &mut self,
        id: &GrantId,
        generation: i64,
        client: &ClientId,
        idle_until: Timestamp,
        now: Timestamp,
    ) -> Result<Option<Grant>, Error> {
        let rotate = diesel::update(t::table)
            .filter(t::id.eq(id.as_str()))
            .filter(t::generation.eq(generation))
            .filter(t::client_id.eq(client.as_str()))
            .filter(is_grant_active!(now))
            .set((
                t::generation.eq(t::generation + 1),
                t::rotated_at.eq(now.micros()),
                t::idle_until.eq(idle_until.micros()),
            ))
            .returning(t::all_columns);
        struct RotateGrant;
        let rotate = Named::<RotateGrant, _>::new(rotate);
        let row = on_own_backend!(self.connection, |inner| rotate.get_result(inner));
        let row: Option<Row> = row.optional()?;
        row.map(Row::grant).transpose()
    }

    /// Returns whether a grant expired without being revoked.
    ///
    /// # Errors
    /// [`Error`].
    pub fn is_expired(&mut self, id: &GrantId, now: Timestamp) -> Result<bool, Error> {
        let expired = t::expires_at
            .le(now.micros())
            .or(t::idle_until.le(now.micros()));
        let row = t::table
            .filter(t::id.eq(id.as_str()))
            .filter(t::ended_at.is_null())
            .filter(expired);
        Ok(diesel::select(exists(row)).get_result(self.connection)?)
    }

    /// Returns whether the grant exists, active or not.
    ///
    /// # Errors
    /// [`Error`].
    pub fn has_grant(&mut self, id: &GrantId) -> Result<bool, Error> {
        Ok(diesel::select(exists(t::table.find(id.as_str()))).get_result(self.connection)?)
    }

    /// Revokes every grant of a user to a client, as when the user removes the application, with one
    /// record for each. Returns how many there were.
    ///
    /// # Errors
    /// [`Error`].
    pub fn revoke_grants_of(
        &mut self,
        user: &UserId,
        client: &ClientId,
        reason: &RevocationReason,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<usize, Error> {
        let ids: Vec<String> = diesel::update(
            t::table
                .filter(t::user_id.eq(user.as_str()))
                .filter(t::client_id.eq(client.as_str()))
                .filter(t::ended_at.is_null()),
        )
        .set(t::ended_at.eq(now.micros()))
        .returning(t::id)
        .get_results(self.connection)?;
        for id in &ids {
            let record = Record {
                kind: Kind::Grant,
                value: id,
                floor: 0,
                reason,
                actor,
            };
            self.put_revocation(&record, now)?;
        }
        Ok(ids.len())
    }

    /// Revokes the oldest grants of a client that with `new`, whose code was just redeemed, has more of a
    /// user than it may (policy §6). A grant whose code was not redeemed does not count: any web page can
    /// cause those, and they must not revoke a grant that is in use.
    ///
    /// # Errors
    /// [`Error`].
    pub fn revoke_surplus_grants(&mut self, new: &Grant, now: Timestamp) -> Result<(), Error> {
        // An unused code and its grant are removed together, so without one the code was redeemed.
        let unredeemed = codes::table
            .filter(codes::grant_id.eq(t::id))
            .filter(codes::used_at.is_null());
        let surplus: Vec<String> = t::table
            .filter(t::user_id.eq(new.user_id.as_str()))
            .filter(t::client_id.eq(new.client_id.as_str()))
            // Those of an older epoch are inactive already.
            .filter(t::user_epoch.eq(new.user_epoch))
            .filter(t::client_epoch.eq(new.client_epoch))
            .filter(t::feed_epoch.eq(new.feed_epoch))
            .filter(t::id.ne(new.id.as_str()))
            .filter(t::ended_at.is_null())
            .filter(t::expires_at.gt(now.micros()))
            .filter(t::idle_until.gt(now.micros()))
            .filter(not(exists(unredeemed)))
            .order((t::created_at.desc(), t::id.desc()))
            .offset(FAMILIES - 1)
            .limit(CLEAN_UP_BATCH)
            .select(t::id)
            .load(self.connection)?;
        for id in surplus {
            self.revoke_grant(
                &GrantId::from(id),
                &RevocationReason::TooManyGrants,
                &Actor::System,
                now,
            )?;
        }
        Ok(())
    }

    /// Revokes a grant and inserts its record. Returns `false` if it was already revoked.
    ///
    /// # Errors
    /// [`Error`].
    pub fn revoke_grant(
        &mut self,
        id: &GrantId,
        reason: &RevocationReason,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<bool, Error> {
        let grant = t::table
            .filter(t::id.eq(id.as_str()))
            .filter(t::ended_at.is_null());
        let revoke = diesel::update(grant).set(t::ended_at.eq(now.micros()));
        let rows = Prepared(revoke).execute(self.connection)?;
        if rows == 1 {
            let record = Record {
                kind: Kind::Grant,
                value: id.as_str(),
                floor: 0,
                reason,
                actor,
            };
            self.put_revocation(&record, now)?;
        }
        Ok(rows == 1)
    }
}
