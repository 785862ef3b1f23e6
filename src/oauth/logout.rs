//! Logout by the client's wish: OpenID Connect RP-Initiated Logout 1.0.

use super::client::Client;
use super::id_token::Hint;

/// Where a browser may go after logout: the URI must be registered, byte for byte, by the client
/// that a genuine `id_token_hint` names (§3).
pub fn destination(
    hint: Option<&Hint>,
    client: Option<&Client>,
    uri: Option<&str>,
    state: Option<&str>,
) -> Option<String> {
    let (hint, client, uri) = (hint?, client?, uri?);
    if hint.client_id != client.id.as_str()
        || !client
            .post_logout_redirect_uris
            .iter()
            .any(|known| known == uri)
    {
        return None;
    }
    Some(match state {
        None => uri.to_owned(),
        Some(state) => {
            let query = form_urlencoded::Serializer::new(String::new())
                .append_pair("state", state)
                .finish();
            format!("{uri}{}{query}", if uri.contains('?') { '&' } else { '?' })
        }
    })
}
