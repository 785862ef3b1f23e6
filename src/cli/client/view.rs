//! The output of commands about clients.

use serde_json::{Value, json};

use crate::admin::clients::view;
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

/// Returns a client with the labels and dates of its secrets.
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
