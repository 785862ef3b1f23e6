//! `authorizations`: authorization requests in progress.

use diesel::{ExpressionMethods, OptionalExtension, QueryDsl, RunQueryDsl};

use super::prepared::Prepared;
use super::schema::authorizations as t;
use super::{Error, Transaction, unreadable};
use crate::config::Network;
use crate::config::limits::{
    AUTHORIZATION_KEPT, CLEAN_UP_BATCH, OPEN_AUTHORIZATIONS, OPEN_AUTHORIZATIONS_PER_IP,
};
use crate::id::{AuthorizationId, ClientId, Sid, UserId};
use crate::oauth::request::next_action::{Authorization, Stage};
use crate::oauth::request::scope::Scope;
use crate::secret::Hash;
use crate::time::Timestamp;

type Row = (
    String,
    Option<String>,
    String,
    Option<Vec<u8>>,
    Option<String>,
    Option<String>,
    Option<String>,
    String,
    Option<String>,
    i64,
    i64,
    Option<i64>,
);

const COLUMNS: (
    t::id,
    t::client_id,
    t::params,
    t::browser,
    t::user_id,
    t::sid,
    t::login_sid,
    t::state,
    t::scope,
    t::created_at,
    t::expires_at,
    t::taken_at,
) = (
    t::id,
    t::client_id,
    t::params,
    t::browser,
    t::user_id,
    t::sid,
    t::login_sid,
    t::state,
    t::scope,
    t::created_at,
    t::expires_at,
    t::taken_at,
);

fn authorization(row: Row) -> Result<Authorization, Error> {
    let (
        id,
        client_id,
        params,
        browser,
        user_id,
        sid,
        login_sid,
        state,
        scope,
        created_at,
        expires_at,
        taken_at,
    ) = row;
    let broken = |column| unreadable("authorizations", column, &id);
    Ok(Authorization {
        client_id: client_id.map(ClientId::from),
        params,
        browser: browser.map(Hash::from_bytes),
        user_id: user_id.map(UserId::from),
        sid: sid.map(Sid::from),
        login_sid: login_sid.map(Sid::from),
        stage: Stage::parse(&state).ok_or_else(|| broken("state"))?,
        scope: scope
            .map(|text| Scope::parse(&text))
            .transpose()
            .map_err(|_| broken("scope"))?,
        created_at: Timestamp::from_micros(created_at),
        expires_at: Timestamp::from_micros(expires_at),
        taken_at: taken_at.map(Timestamp::from_micros),
        id: AuthorizationId::from(id),
    })
}

/// Selects the authorization of this id if it is open.
#[diesel::dsl::auto_type(no_type_alias)]
fn open<'a>(id: &'a AuthorizationId, now: Timestamp) -> _ {
    let (id, now): (&'a str, i64) = (id.as_str(), now.micros());
    t::table
        .filter(t::id.eq(id))
        .filter(t::taken_at.is_null())
        .filter(t::expires_at.gt(now))
}

impl Transaction<'_> {
    /// Returns an authorization, in any state.
    ///
    /// # Errors
    /// [`Error`].
    pub fn find_authorization(
        &mut self,
        id: &AuthorizationId,
    ) -> Result<Option<Authorization>, Error> {
        let row: Option<Row> = t::table
            .find(id.as_str())
            .select(COLUMNS)
            .first(self.connection)
            .optional()?;
        row.map(authorization).transpose()
    }

    /// Inserts an authorization. If its network then has more than [`OPEN_AUTHORIZATIONS_PER_IP`] in
    /// progress, the oldest without a sign-in are removed.
    ///
    /// # Errors
    /// [`Error`].
    pub fn put_authorization(
        &mut self,
        authorization: &Authorization,
        network: &Network,
    ) -> Result<(), Error> {
        let network = network.to_string();
        diesel::insert_into(t::table)
            .values((
                t::id.eq(authorization.id.as_str()),
                t::client_id.eq(authorization.client_id.as_ref().map(ClientId::as_str)),
                t::params.eq(&authorization.params),
                t::browser.eq(authorization.browser.as_ref().map(Hash::as_bytes)),
                t::state.eq(authorization.stage.as_str()),
                t::created_at.eq(authorization.created_at.micros()),
                t::expires_at.eq(authorization.expires_at.micros()),
                t::network.eq(&network),
            ))
            .execute(self.connection)?;
        let beyond: Vec<String> = t::table
            .filter(t::network.eq(&network))
            .filter(t::sid.is_null())
            .filter(t::taken_at.is_null())
            // Ids are ordered by time (RFC 9562 §5.7).
            .order(t::id.desc())
            .offset(OPEN_AUTHORIZATIONS_PER_IP)
            .limit(CLEAN_UP_BATCH)
            .select(t::id)
            .load(self.connection)?;
        if !beyond.is_empty() {
            diesel::delete(t::table.filter(t::id.eq_any(beyond))).execute(self.connection)?;
        }
        Ok(())
    }

    /// Keeps the number of authorizations in progress below [`OPEN_AUTHORIZATIONS`], with room for those
    /// that start before the next call, by removing the oldest without a sign-in.
    ///
    /// # Errors
    /// [`Error`].
    pub fn cap_authorizations(&mut self) -> Result<usize, Error> {
        // Expired ones count until they are removed.
        let open: i64 = t::table
            .filter(t::taken_at.is_null())
            .count()
            .get_result(self.connection)?;
        let excess = open - (OPEN_AUTHORIZATIONS - CLEAN_UP_BATCH);
        if excess <= 0 {
            return Ok(0);
        }
        let oldest: Vec<String> = t::table
            .filter(t::sid.is_null())
            .filter(t::taken_at.is_null())
            .order(t::id)
            .limit(excess.min(CLEAN_UP_BATCH))
            .select(t::id)
            .load(self.connection)?;
        Ok(diesel::delete(t::table.filter(t::id.eq_any(oldest))).execute(self.connection)?)
    }

    /// Binds an authorization from a cross-site POST to the browser that opens it first. Returns `false` if
    /// another browser was first.
    ///
    /// # Errors
    /// [`Error`].
    pub fn bind_authorization(
        &mut self,
        id: &AuthorizationId,
        browser: &Hash,
    ) -> Result<bool, Error> {
        let rows = diesel::update(
            t::table
                .filter(t::id.eq(id.as_str()))
                .filter(t::browser.is_null()),
        )
        .set(t::browser.eq(browser.as_bytes()))
        .execute(self.connection)?;
        Ok(rows == 1)
    }

    /// Records the sign-in for an open authorization, and discards an earlier decision on consent. Returns
    /// `false` if the authorization is not open.
    ///
    /// # Errors
    /// [`Error`].
    pub fn record_login(
        &mut self,
        id: &AuthorizationId,
        login: (&UserId, &Sid),
        now: Timestamp,
    ) -> Result<bool, Error> {
        let record = diesel::update(open(id, now)).set((
            t::state.eq(Stage::SignedIn.as_str()),
            t::user_id.eq(login.0.as_str()),
            t::sid.eq(login.1.as_str()),
            t::login_sid.eq(login.1.as_str()),
            t::scope.eq(None::<String>),
        ));
        Ok(Prepared(record).execute(self.connection)? == 1)
    }

    /// Records the decision of the user of `login` on an open authorization: the granted scope, or `None`
    /// for a denial. Returns `false` if the authorization is not open.
    ///
    /// # Errors
    /// [`Error`].
    pub fn record_decision(
        &mut self,
        id: &AuthorizationId,
        login: (&UserId, &Sid),
        granted: Option<&Scope>,
        now: Timestamp,
    ) -> Result<bool, Error> {
        let stage = match granted {
            Some(_) => Stage::Consented,
            None => Stage::Denied,
        };
        let record = diesel::update(open(id, now)).set((
            t::state.eq(stage.as_str()),
            t::user_id.eq(login.0.as_str()),
            t::sid.eq(login.1.as_str()),
            t::scope.eq(granted.map(ToString::to_string)),
        ));
        Ok(Prepared(record).execute(self.connection)? == 1)
    }

    /// Takes an open authorization in order to answer it. Succeeds at most once.
    ///
    /// # Errors
    /// [`Error`].
    pub fn take_authorization(
        &mut self,
        id: &AuthorizationId,
        now: Timestamp,
    ) -> Result<bool, Error> {
        let take = diesel::update(open(id, now)).set(t::taken_at.eq(now.micros()));
        Ok(Prepared(take).execute(self.connection)? == 1)
    }

    /// Removes authorizations that expired more than [`AUTHORIZATION_KEPT`] before `now`, at most `batch` of
    /// them.
    ///
    /// # Errors
    /// [`Error`].
    pub fn drop_expired_authorizations(
        &mut self,
        batch: i64,
        now: Timestamp,
    ) -> Result<usize, Error> {
        let ids: Vec<String> = t::table
            .filter(t::expires_at.lt((now - AUTHORIZATION_KEPT).micros()))
            .order(t::expires_at)
            .limit(batch)
            .select(t::id)
            .load(self.connection)?;
        Ok(diesel::delete(t::table.filter(t::id.eq_any(ids))).execute(self.connection)?)
    }
}
