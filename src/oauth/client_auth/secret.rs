//! `client_secret_basic` and `client_secret_post`: RFC 6749 §2.3.1.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::config::limits::SECRET_TOUCH;
use crate::oauth::client::{AuthMethod, Client};
use crate::oauth::request::params::Params;
use crate::secret::Hash;
use crate::time::Timestamp;

/// A client secret, and how the request carried it.
#[derive(Debug)]
pub(super) struct ClientSecretCredential {
    /// Computed before the client is known, so that the time does not depend on the client.
    hash: Hash,
    method: AuthMethod,
}

/// The stored secret that a credential matches.
#[derive(Clone, Debug)]
pub(super) struct UsedSecret {
    id: String,
    /// Whether its last use was recorded too long ago.
    is_stale: bool,
}

impl UsedSecret {
    pub(super) fn id_to_touch(&self) -> Option<&str> {
        self.is_stale.then_some(self.id.as_str())
    }
}

impl ClientSecretCredential {
    /// Creates the credential of `client_secret_post`.
    pub(super) fn in_form(secret: &str) -> Self {
        Self {
            hash: Hash::of(secret),
            method: AuthMethod::Post,
        }
    }

    pub(super) fn method(&self) -> AuthMethod {
        self.method
    }

    /// Returns the valid secret of the client that this one matches.
    pub(super) fn verify(&self, client: &Client, now: Timestamp) -> Option<UsedSecret> {
        let mut valid = client.secrets.iter().filter(|secret| secret.is_live(now));
        let matching = valid.find(|secret| secret.hash.matches(&self.hash))?;
        let is_old = |at: Timestamp| now.since(at) >= SECRET_TOUCH;
        Some(UsedSecret {
            id: matching.id.clone(),
            is_stale: matching.last_used_at.is_none_or(is_old),
        })
    }
}

/// Reads client id and secret of a Basic header. Each was form-encoded before the pair was joined (§2.3.1).
pub(super) fn read_basic(header: &[u8]) -> Option<(String, ClientSecretCredential)> {
    let text = std::str::from_utf8(header).ok()?;
    let (scheme, encoded) = text.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (id, secret) = pair.split_once(':')?;
    // An empty secret is a wrong one: it is looked up and counted like every other.
    let secret = match secret {
        "" => String::new(),
        secret => form_decoded(secret)?,
    };
    let credential = ClientSecretCredential {
        hash: Hash::of(&secret),
        method: AuthMethod::Basic,
    };
    Some((form_decoded(id)?, credential))
}

fn form_decoded(text: &str) -> Option<String> {
    if text.contains('&') || text.contains('=') {
        // Many clients do not encode the value. It must not be parsed as several fields.
        return Some(text.to_owned());
    }
    let params = Params::parse(format!("v={text}").as_bytes()).ok()?;
    params.one("v").ok()?.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_halves_of_basic_are_form_decoded() {
        let read = |pair: &str| read_basic(format!("Basic {}", STANDARD.encode(pair)).as_bytes());
        let (client_id, credential) = read("a%3Ab:s+e%25cret").unwrap();
        assert_eq!(client_id, "a:b");
        assert!(credential.hash.matches(&Hash::of("s e%cret")));
        let (_, credential) = read("id:").unwrap();
        assert!(credential.hash.matches(&Hash::of("")));
        for broken in ["no-colon", "id:se%cret", ":secret"] {
            assert!(read(broken).is_none(), "{broken}");
        }
    }
}
