//! Conversion between [`Client`] and a row of `clients`.

use std::sync::Arc;

use super::schema::clients as t;
use super::{Error, list, to_list, unreadable};
use crate::config::Network;
use crate::id::ClientId;
use crate::keys::Alg;
use crate::keys::client_key_set::{AssertionAlg, ClientKeySet};
use crate::oauth::client::{
    AssertionAudience, AuthMethod, Client, ClientSecret, ConsentPolicy, GrantType,
};
use crate::oauth::request::scope::Scope;
use crate::time::Timestamp;

/// A row of `clients`, column by column.
#[derive(diesel::Queryable)]
pub(super) struct Row {
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
    secret_either_way: bool,
    backchannel_logout_uri: Option<String>,
    backchannel_logout_session_required: bool,
    assertion_auth: bool,
    assertion_alg: Option<String>,
    assertion_audience: String,
    jwks: Option<String>,
}

impl Row {
    pub(super) fn client(self, secrets: Vec<ClientSecret>) -> Result<Client, Error> {
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
            auth_method: match (self.assertion_auth, self.secret_either_way) {
                (true, _) => AuthMethod::PrivateKeyJwt,
                (false, true) => AuthMethod::Secret,
                (false, false) => {
                    AuthMethod::parse(&self.auth_method).ok_or_else(|| broken("auth_method"))?
                }
            },
            redirect_uris: texts("redirect_uris", &self.redirect_uris)?,
            jwks: self
                .jwks
                .map(|jwks| ClientKeySet::parse(&jwks).map_err(|_| broken("jwks")))
                .transpose()?
                .map(Arc::new),
            assertion_alg: self
                .assertion_alg
                .as_deref()
                .map(|name| AssertionAlg::from_name(name).ok_or_else(|| broken("assertion_alg")))
                .transpose()?,
            assertion_audience: AssertionAudience::parse(&self.assertion_audience)
                .ok_or_else(|| broken("assertion_audience"))?,
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
            backchannel_logout_uri: self.backchannel_logout_uri,
            backchannel_logout_session_required: self.backchannel_logout_session_required,
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

/// The columns of a registration, without id, auth epoch and timestamps.
#[derive(diesel::Insertable, diesel::AsChangeset)]
#[diesel(table_name = t, treat_none_as_null = true)]
pub(super) struct Columns {
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
    secret_either_way: bool,
    backchannel_logout_uri: Option<String>,
    backchannel_logout_session_required: bool,
    assertion_auth: bool,
    assertion_alg: Option<&'static str>,
    assertion_audience: &'static str,
    jwks: Option<String>,
}

impl Columns {
    pub(super) fn of(client: &Client) -> Self {
        let grants = client.grant_types.iter();
        let grants: Vec<String> = grants.map(|grant| grant.as_str().to_owned()).collect();
        Self {
            name: client.name.clone(),
            kind: match client.is_confidential() {
                true => "confidential",
                false => "public",
            },
            // The previous version does not know these values. It accepts one of both ways, and no secret of a client
            // that signs assertions, because that has none.
            auth_method: match client.auth_method {
                AuthMethod::Secret | AuthMethod::PrivateKeyJwt => AuthMethod::Basic.as_str(),
                method => method.as_str(),
            },
            assertion_auth: client.auth_method == AuthMethod::PrivateKeyJwt,
            assertion_alg: client.assertion_alg.map(AssertionAlg::name),
            assertion_audience: client.assertion_audience.as_str(),
            jwks: client.jwks.as_ref().map(|jwks| jwks.as_str().to_owned()),
            secret_either_way: client.auth_method == AuthMethod::Secret,
            redirect_uris: to_list(&client.redirect_uris),
            grant_types: to_list(&grants),
            scopes: client.scopes.to_string(),
            resources: to_list(&client.resources),
            cors_origins: to_list(&client.cors_origins),
            post_logout_redirect_uris: to_list(&client.post_logout_redirect_uris),
            backchannel_logout_uri: client.backchannel_logout_uri.clone(),
            backchannel_logout_session_required: client.backchannel_logout_session_required,
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
