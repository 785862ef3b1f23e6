//! `clients` and `client_secrets`.

use diesel::{
    ExpressionMethods, JoinOnDsl, NullableExpressionMethods, OptionalExtension, QueryDsl,
    RunQueryDsl,
};

use super::schema::{client_secrets as s, clients as t};
use super::{Error, Transaction, list, to_list, unreadable};
use crate::id::ClientId;
use crate::keys::Alg;
use crate::oauth::client::{AuthMethod, Client, ClientSecret, ConsentPolicy, GrantType};
use crate::oauth::scope::Scope;
use crate::secret::Hash;
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
}

impl Row {
    fn client(self, secrets: Vec<ClientSecret>) -> Result<Client, Error> {
        let id = self.id.clone();
        let broken = |column| unreadable("clients", column, &id);
        let texts = |column, text: &str| list("clients", column, &id, text);
        let grant_types = texts("grant_types", &self.grant_types)?;
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
            auth_epoch: self.auth_epoch,
            disabled_at: self.disabled_at.map(Timestamp::from_micros),
            created_at: Timestamp::from_micros(self.created_at),
            secrets,
            id: ClientId::from(self.id),
        })
    }
}

impl Transaction<'_> {
    /// A client that is not switched off, with its secrets, in one statement.
    ///
    /// # Errors
    /// [`Error`].
    pub fn find_client(&mut self, id: &ClientId) -> Result<Option<Client>, Error> {
        let rows: Vec<(Row, Option<Vec<u8>>, Option<i64>)> = t::table
            .left_join(s::table.on(s::client_id.eq(t::id)))
            .filter(t::id.eq(id.as_str()))
            .filter(t::disabled_at.is_null())
            .select((t::all_columns, s::hash.nullable(), s::expires_at.nullable()))
            .load(self.0)?;
        let mut secrets = Vec::new();
        let mut client = None;
        for (row, hash, expires_at) in rows {
            secrets.extend(hash.map(|hash| ClientSecret {
                hash: Hash::from_bytes(hash),
                expires_at: expires_at.map(Timestamp::from_micros),
            }));
            client = Some(row);
        }
        client.map(|row| row.client(secrets)).transpose()
    }

    /// All clients, by name, without their secrets; those that are switched off too.
    ///
    /// # Errors
    /// [`Error`].
    pub fn list_clients(&mut self) -> Result<Vec<Client>, Error> {
        let rows: Vec<Row> = t::table.order((t::name, t::id)).load(self.0)?;
        rows.into_iter().map(|row| row.client(Vec::new())).collect()
    }

    /// Registers a client with its first secret, if it has one.
    ///
    /// # Errors
    /// [`Error::Duplicate`] when the id is taken.
    pub fn put_client(
        &mut self,
        client: &Client,
        secret: Option<(&Hash, &str)>,
    ) -> Result<(), Error> {
        let grant_types: Vec<String> = client
            .grant_types
            .iter()
            .map(|g| g.as_str().to_owned())
            .collect();
        diesel::insert_into(t::table)
            .values((
                (
                    t::id.eq(client.id.as_str()),
                    t::name.eq(&client.name),
                    t::kind.eq(if client.is_confidential() {
                        "confidential"
                    } else {
                        "public"
                    }),
                    t::auth_method.eq(client.auth_method.as_str()),
                    t::redirect_uris.eq(to_list(&client.redirect_uris)),
                    t::grant_types.eq(to_list(&grant_types)),
                    t::scopes.eq(client.scopes.to_string()),
                    t::resources.eq(to_list(&client.resources)),
                    t::cors_origins.eq(to_list(&client.cors_origins)),
                    t::post_logout_redirect_uris.eq(to_list(&client.post_logout_redirect_uris)),
                ),
                (
                    t::id_token_alg.eq(client.id_token_alg.name()),
                    t::consent.eq(client.consent.as_str()),
                    t::require_pkce.eq(client.require_pkce),
                    t::allow_localhost_redirect.eq(client.allow_localhost_redirect),
                    t::client_uri.eq(&client.client_uri),
                    t::policy_uri.eq(&client.policy_uri),
                    t::tos_uri.eq(&client.tos_uri),
                    t::auth_epoch.eq(client.auth_epoch),
                    t::created_at.eq(client.created_at.micros()),
                ),
            ))
            .execute(self.0)?;
        if let Some((hash, id)) = secret {
            diesel::insert_into(s::table)
                .values((
                    s::id.eq(id),
                    s::client_id.eq(client.id.as_str()),
                    s::hash.eq(hash.as_bytes()),
                    s::label.eq("first"),
                    s::created_at.eq(client.created_at.micros()),
                ))
                .execute(self.0)?;
        }
        Ok(())
    }

    /// Replaces the redirect URIs of a client; `false` when there is no such client.
    ///
    /// # Errors
    /// [`Error`].
    pub fn set_redirect_uris(&mut self, id: &ClientId, uris: &[String]) -> Result<bool, Error> {
        let rows = diesel::update(t::table.filter(t::id.eq(id.as_str())))
            .set(t::redirect_uris.eq(to_list(uris)))
            .execute(self.0)?;
        Ok(rows == 1)
    }

    /// Switches a client off: raises its auth epoch, so that everything it holds is dead.
    ///
    /// # Errors
    /// [`Error`].
    pub fn disable_client(&mut self, id: &ClientId, now: Timestamp) -> Result<bool, Error> {
        let rows = diesel::update(
            t::table
                .filter(t::id.eq(id.as_str()))
                .filter(t::disabled_at.is_null()),
        )
        .set((
            t::disabled_at.eq(now.micros()),
            t::auth_epoch.eq(t::auth_epoch + 1),
        ))
        .execute(self.0)?;
        Ok(rows == 1)
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
