//! `clients`.

use diesel::{
    BoolExpressionMethods, ExpressionMethods, JoinOnDsl, NullableExpressionMethods,
    OptionalExtension, QueryDsl, RunQueryDsl,
};
use portcullis_verifier::Kind;

use super::revocations::Record;
use super::schema::{client_secrets as s, clients as t, feed_head};
use super::{Error, Transaction, client_secrets, list, to_list, unreadable};
use crate::config::Network;
use crate::id::ClientId;
use crate::keys::Alg;
use crate::oauth::client::{
    AuthMethod, Client, ClientSecret, ConsentPolicy, GrantType, Registration,
};
use crate::oauth::scope::Scope;

use crate::time::Timestamp;

/// A row of `clients`, column by column.
#[derive(diesel::Queryable)]
struct Row {
    id: String,
    name: String,
    _kind: String,
    auth_method: String,
    redirect_uris: String,
    grant_types: String,
    scopes: String,
    resources: String,
    cors_origins: String,
    post_logout_redirect_uris: String,
    id_token_alg: String,
    consent: String,
    require_pkce: bool,
    allow_localhost_redirect: bool,
    client_uri: Option<String>,
    policy_uri: Option<String>,
    tos_uri: Option<String>,
    auth_epoch: i64,
    disabled_at: Option<i64>,
    created_at: i64,
    serves: String,
    userinfo_alg: Option<String>,
    deleted_at: Option<i64>,
    allow_networks: String,
    deny_networks: String,
}

impl Row {
    fn client(self, secrets: Vec<ClientSecret>) -> Result<Client, Error> {
        let id = self.id.clone();
        let broken = |column| unreadable("clients", column, &id);
        let texts = |column, text: &str| list("clients", column, &id, text);
        let networks = |column, text: &str| -> Result<Vec<Network>, Error> {
            let texts = texts(column, text)?;
            let read = texts.iter().map(|text| text.parse());
            read.collect::<Result<_, _>>().map_err(|_| broken(column))
        };
        let grant_types = texts("grant_types", &self.grant_types)?;
        let userinfo_alg = self.userinfo_alg.as_deref();
        Ok(Client {
            name: self.name,
            auth_method: AuthMethod::parse(&self.auth_method)
                .ok_or_else(|| broken("auth_method"))?,
            redirect_uris: texts("redirect_uris", &self.redirect_uris)?,
            grant_types: grant_types
                .iter()
                .map(|grant| GrantType::parse(grant).ok_or_else(|| broken("grant_types")))
                .collect::<Result<_, _>>()?,
            scopes: Scope::parse(&self.scopes).map_err(|_| broken("scopes"))?,
            resources: texts("resources", &self.resources)?,
            cors_origins: texts("cors_origins", &self.cors_origins)?,
            post_logout_redirect_uris: texts(
                "post_logout_redirect_uris",
                &self.post_logout_redirect_uris,
            )?,
            id_token_alg: Alg::from_name(&self.id_token_alg)
                .ok_or_else(|| broken("id_token_alg"))?,
            consent: ConsentPolicy::parse(&self.consent).ok_or_else(|| broken("consent"))?,
            require_pkce: self.require_pkce,
            allow_localhost_redirect: self.allow_localhost_redirect,
            client_uri: self.client_uri,
            policy_uri: self.policy_uri,
            tos_uri: self.tos_uri,
            serves: texts("serves", &self.serves)?,
            userinfo_alg: userinfo_alg
                .map(|name| Alg::from_name(name).ok_or_else(|| broken("userinfo_alg")))
                .transpose()?,
            allow_networks: networks("allow_networks", &self.allow_networks)?,
            deny_networks: networks("deny_networks", &self.deny_networks)?,
            auth_epoch: self.auth_epoch,
            disabled_at: self.disabled_at.map(Timestamp::from_micros),
            deleted_at: self.deleted_at.map(Timestamp::from_micros),
            created_at: Timestamp::from_micros(self.created_at),
            secrets,
            id: ClientId::from(self.id),
        })
    }
}

/// What a registration says: everything but the id and the client's life.
#[derive(diesel::Insertable, diesel::AsChangeset)]
#[diesel(table_name = t, treat_none_as_null = true)]
struct Columns {
    name: String,
    kind: &'static str,
    auth_method: &'static str,
    redirect_uris: String,
    grant_types: String,
    scopes: String,
    resources: String,
    cors_origins: String,
    post_logout_redirect_uris: String,
    id_token_alg: &'static str,
    consent: &'static str,
    require_pkce: bool,
    allow_localhost_redirect: bool,
    client_uri: Option<String>,
    policy_uri: Option<String>,
    tos_uri: Option<String>,
    serves: String,
    userinfo_alg: Option<&'static str>,
    allow_networks: String,
    deny_networks: String,
}

impl Columns {
    fn of(client: &Client) -> Self {
        let grants = client.grant_types.iter();
        let grants: Vec<String> = grants.map(|grant| grant.as_str().to_owned()).collect();
        Self {
            name: client.name.clone(),
            kind: match client.is_confidential() {
                true => "confidential",
                false => "public",
            },
            auth_method: client.auth_method.as_str(),
            redirect_uris: to_list(&client.redirect_uris),
            grant_types: to_list(&grants),
            scopes: client.scopes.to_string(),
            resources: to_list(&client.resources),
            cors_origins: to_list(&client.cors_origins),
            post_logout_redirect_uris: to_list(&client.post_logout_redirect_uris),
            id_token_alg: client.id_token_alg.name(),
            consent: client.consent.as_str(),
            require_pkce: client.require_pkce,
            allow_localhost_redirect: client.allow_localhost_redirect,
            client_uri: client.client_uri.clone(),
            policy_uri: client.policy_uri.clone(),
            tos_uri: client.tos_uri.clone(),
            serves: to_list(&client.serves),
            userinfo_alg: client.userinfo_alg.map(Alg::name),
            allow_networks: to_list(&written(&client.allow_networks)),
            deny_networks: to_list(&written(&client.deny_networks)),
        }
    }
}

fn written(networks: &[Network]) -> Vec<String> {
    networks.iter().map(ToString::to_string).collect()
}

impl Transaction<'_> {
    /// A client that is not switched off, with its secrets, in one statement.
    ///
    /// # Errors
    /// [`Error`].
    pub fn find_client(&mut self, id: &ClientId) -> Result<Option<Client>, Error> {
        let client = self.find_registered(id)?;
        Ok(client.filter(|client| client.disabled_at.is_none()))
    }

    /// A client with its secrets, switched off or not, but not a deleted one.
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
            .load(self.0)?;
        let mut secrets = Vec::new();
        let mut client = None;
        for (row, secret) in rows {
            secrets.extend(secret.map(client_secrets::client_secret));
            client = Some(row);
        }
        client.map(|row| row.client(secrets)).transpose()
    }

    /// A client that is not switched off, with all that its token requests need to know.
    ///
    /// # Errors
    /// [`Error`].
    pub fn find_registration(&mut self, id: &ClientId) -> Result<Option<Registration>, Error> {
        let Some(client) = self.find_client(id)? else {
            return Ok(None);
        };
        Ok(Some(Registration {
            max_age: self
                .find_resources(&client.serves)?
                .iter()
                .map(|resource| resource.max_age)
                .min()
                .unwrap_or_default(),
            resources: self.find_resources(&client.resources)?,
            feed_epoch: self.feed_epoch()?,
            client,
        }))
    }

    /// All clients but deleted ones, by name, without their secrets; those that are switched off too.
    ///
    /// # Errors
    /// [`Error`].
    pub fn list_clients(&mut self) -> Result<Vec<Client>, Error> {
        let rows: Vec<Row> = t::table
            .filter(t::deleted_at.is_null())
            .order((t::name, t::id))
            .load(self.0)?;
        rows.into_iter().map(|row| row.client(Vec::new())).collect()
    }

    /// A client, if there is one, whose ID tokens or userinfo answers are signed with none of these.
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
            .first(self.0)
            .optional()?;
        Ok(found.map(ClientId::from))
    }

    /// The resource servers that are not switched off, with their auth epochs.
    ///
    /// # Errors
    /// [`Error`].
    pub fn list_subscribers(&mut self) -> Result<Vec<(ClientId, i64)>, Error> {
        let rows: Vec<(String, i64)> = t::table
            .filter(t::disabled_at.is_null())
            .filter(t::deleted_at.is_null())
            .filter(t::serves.ne("[]"))
            .select((t::id, t::auth_epoch))
            .load(self.0)?;
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
            .execute(self.0)?;
        for secret in &client.secrets {
            self.put_client_secret(&client.id, secret)?;
        }
        self.raise_config_version()
    }

    /// Replaces what a registration says; `false` when there is no such client. Whoever may do less
    /// than before is cut off by [`Transaction::cut_off_client`], not by this.
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
        .execute(self.0)?;
        self.raise_config_version()?;
        Ok(rows == 1)
    }

    /// Cuts a client off: raises its auth epoch, so that every code, grant and token that it got
    /// before is dead, and puts the record on the blocklist. `false` when there is no such client.
    ///
    /// # Errors
    /// [`Error`].
    pub fn cut_off_client(
        &mut self,
        id: &ClientId,
        reason: &str,
        actor: &str,
        now: Timestamp,
    ) -> Result<bool, Error> {
        let floor: Option<i64> = diesel::update(t::table.find(id.as_str()))
            .set(t::auth_epoch.eq(t::auth_epoch + 1))
            .returning(t::auth_epoch)
            .get_result(self.0)
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

    /// Switches a client off, and cuts it off; `false` when it was off already.
    ///
    /// # Errors
    /// [`Error`].
    pub fn disable_client(
        &mut self,
        id: &ClientId,
        actor: &str,
        now: Timestamp,
    ) -> Result<bool, Error> {
        let rows = diesel::update(
            t::table
                .filter(t::id.eq(id.as_str()))
                .filter(t::disabled_at.is_null()),
        )
        .set(t::disabled_at.eq(now.micros()))
        .execute(self.0)?;
        Ok(rows == 1 && self.cut_off_client(id, "disabled", actor, now)?)
    }

    /// Switches a client on again; what it held before stays dead. `false` when it was not off.
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
        .execute(self.0)?;
        self.raise_config_version()?;
        Ok(rows == 1)
    }

    /// Deletes a client: it is cut off, its secrets are gone, its id stays taken. `false` when there
    /// is no such client.
    ///
    /// # Errors
    /// [`Error`].
    pub fn delete_client(
        &mut self,
        id: &ClientId,
        actor: &str,
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
        .execute(self.0)?;
        if rows == 0 {
            return Ok(false);
        }
        diesel::delete(s::table.filter(s::client_id.eq(id.as_str()))).execute(self.0)?;
        self.cut_off_client(id, "deleted", actor, now)
    }

    /// Tells every node that clients or resources changed.
    pub(super) fn raise_config_version(&mut self) -> Result<(), Error> {
        diesel::update(feed_head::table)
            .set(feed_head::config_version.eq(feed_head::config_version + 1))
            .execute(self.0)?;
        Ok(())
    }

    /// Whether some live client has registered the origin for cross-origin calls.
    ///
    /// # Errors
    /// [`Error`].
    pub fn is_cors_origin(&mut self, origin: &str) -> Result<bool, Error> {
        let lists: Vec<String> = t::table
            .filter(t::disabled_at.is_null())
            .filter(t::cors_origins.ne("[]"))
            .select(t::cors_origins)
            .load(self.0)?;
        Ok(lists.iter().any(|text| {
            serde_json::from_str::<Vec<String>>(text)
                .is_ok_and(|known| known.iter().any(|o| o == origin))
        }))
    }

    /// Whether there is any client at all.
    ///
    /// # Errors
    /// [`Error`].
    pub fn has_client(&mut self, id: &ClientId) -> Result<bool, Error> {
        let found: Option<String> = t::table
            .find(id.as_str())
            .select(t::id)
            .first(self.0)
            .optional()?;
        Ok(found.is_some())
    }
}
