//! What commands show of a client.

use serde_json::{Value, json};

use crate::keys::Alg;
use crate::oauth::client::{Client, ClientSecret};

pub(super) fn row(client: &Client) -> Vec<String> {
    vec![
        client.id.to_string(),
        client.name.clone(),
        client.auth_method.as_str().to_owned(),
        client
            .disabled_at
            .map_or("active", |_| "disabled")
            .to_owned(),
        client.redirect_uris.join(" "),
    ]
}

/// The names of RFC 7591 §2 where it has one.
pub fn view(client: &Client) -> Value {
    json!({
        "client_id": client.id.as_str(),
        "client_name": client.name,
        "token_endpoint_auth_method": client.auth_method.as_str(),
        "redirect_uris": client.redirect_uris,
        "grant_types": client.grant_types.iter().map(|grant| grant.as_str()).collect::<Vec<_>>(),
        "scope": client.scopes.to_string(),
        "resources": client.resources,
        "cors_origins": client.cors_origins,
        "post_logout_redirect_uris": client.post_logout_redirect_uris,
        "serves": client.serves,
        "id_token_signed_response_alg": client.id_token_alg.name(),
        "userinfo_signed_response_alg": client.userinfo_alg.map(Alg::name),
        "consent": client.consent.as_str(),
        "require_pkce": client.require_pkce,
        "allow_localhost_redirect": client.allow_localhost_redirect,
        "allow_networks": client.allow_networks,
        "deny_networks": client.deny_networks,
        "client_uri": client.client_uri,
        "policy_uri": client.policy_uri,
        "tos_uri": client.tos_uri,
        "disabled": client.disabled_at.is_some(),
        "created_at": client.created_at.to_string(),
    })
}

/// A client with its secrets, of which nothing but their life is known.
pub(super) fn view_with_secrets(client: &Client) -> Value {
    let mut shown = view(client);
    let secret = |secret: &ClientSecret| {
        json!({
            "label": secret.label,
            "created_at": secret.created_at.to_string(),
            "expires_at": secret.expires_at.map(|at| at.to_string()),
            "last_used_at": secret.last_used_at.map(|at| at.to_string()),
        })
    };
    shown["client_secrets"] = client.secrets.iter().map(secret).collect();
    shown
}
