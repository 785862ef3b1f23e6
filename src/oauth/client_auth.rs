//! Client authentication: RFC 6749 §2.3. Which credentials came, and are they right.

use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use portcullis_verifier::MaxAge;

use super::client::{AuthMethod, Client, Registration};
use super::error::{Description, Detail, Error};
use super::request::params::Params;
use super::resource::Resource;
use crate::config::limits::SECRET_TOUCH;
use crate::id::ClientId;
use crate::secret::{Hash, Secret};
use crate::time::Timestamp;

/// Who the caller says it is, and with what proof. Exactly one method.
#[derive(Debug)]
pub struct ClientCredentials {
    /// The claimed identity.
    pub client_id: ClientId,
    method: AuthMethod,
    secret: Option<Secret>,
}

/// A client that has proven who it is. Only [`prove`] makes one.
#[derive(Clone, Debug)]
pub struct AuthenticatedClient {
    registration: Arc<Registration>,
    secret: Option<String>,
}

impl AuthenticatedClient {
    /// The client.
    pub fn client(&self) -> &Client {
        &self.registration.client
    }

    /// The APIs that it may ask tokens for.
    pub fn resources(&self) -> &[Resource] {
        &self.registration.resources
    }

    /// The oldest news of revocations that it may go by.
    pub fn max_age(&self) -> MaxAge {
        self.registration.max_age
    }

    /// The feed epoch that its tokens carry.
    pub fn feed_epoch(&self) -> i64 {
        self.registration.feed_epoch
    }

    /// The row id of the secret by which it proved itself, if that has not been noted lately.
    pub fn secret_to_note(&self) -> Option<&str> {
        self.secret.as_deref()
    }
}

#[derive(Clone, Copy)]
enum Auth {
    Malformed,
    Missing,
    Multiple,
    Unknown,
    Method,
    Secret,
    Network,
}

impl From<Auth> for Detail {
    fn from(auth: Auth) -> Self {
        let failed = |reason| Detail::new("client.auth_failed", reason);
        match auth {
            Auth::Malformed => failed("malformed"),
            Auth::Missing => failed("missing"),
            Auth::Multiple => failed("multi").described(Description::CLIENT_AUTHENTICATION),
            Auth::Unknown => failed("unknown"),
            Auth::Method => failed("method"),
            Auth::Secret => failed("secret"),
            Auth::Network => failed("network"),
        }
    }
}

/// Reads the credentials of a request: the values of its `Authorization` headers, and its form.
///
/// # Errors
/// `invalid_request` for more than one method (§2.3), `invalid_client` for none or an unreadable one.
pub fn present(authorization: &[&[u8]], form: &Params) -> Result<ClientCredentials, Error> {
    let body_id = form
        .one("client_id")
        .map_err(|_| Error::invalid_request(Auth::Multiple))?;
    let body_secret = form
        .one("client_secret")
        .map_err(|_| Error::invalid_request(Auth::Multiple))?;
    let basic = match authorization {
        [] => None,
        [one] => Some(basic(one).ok_or_else(|| Error::invalid_client(Auth::Malformed))?),
        _ => return Err(Error::invalid_request(Auth::Multiple)),
    };
    if form.has("client_assertion") {
        // Assertions (RFC 7523 §2.2) are not offered; an ignored one must not pass for `none`.
        return Err(if basic.is_some() || body_secret.is_some() {
            Error::invalid_request(Auth::Multiple)
        } else {
            Error::invalid_client(Auth::Method)
        });
    }
    match (basic, body_id, body_secret) {
        (Some(_), _, Some(_)) => Err(Error::invalid_request(Auth::Multiple)),
        (Some((id, _)), Some(body_id), None) if id != body_id => {
            Err(Error::invalid_request(Auth::Multiple))
        }
        (Some((id, secret)), _, None) => Ok(ClientCredentials {
            client_id: ClientId::from(id),
            method: AuthMethod::Basic,
            secret: Some(secret),
        }),
        (None, Some(id), Some(secret)) => Ok(ClientCredentials {
            client_id: ClientId::from(id),
            method: AuthMethod::Post,
            secret: Some(Secret::from_text(secret)),
        }),
        (None, Some(id), None) => Ok(ClientCredentials {
            client_id: ClientId::from(id),
            method: AuthMethod::None,
            secret: None,
        }),
        (None, None, _) => Err(Error::invalid_client(Auth::Missing)),
    }
}

/// Checks the proof against the registration.
///
/// # Errors
/// `invalid_client`, the same for an unknown client, a method that is not the registered one, a
/// wrong secret, and an address outside the client's networks.
pub fn authenticate(
    presented: &ClientCredentials,
    registration: Option<Arc<Registration>>,
    address: IpAddr,
    now: Timestamp,
) -> Result<AuthenticatedClient, Error> {
    let Some(registration) = registration else {
        return Err(Error::invalid_client(Auth::Unknown));
    };
    let client = &registration.client;
    if client.auth_method != presented.method {
        return Err(Error::invalid_client(Auth::Method));
    }
    let mut noted = None;
    if let Some(secret) = &presented.secret {
        let hash = Hash::of(secret.expose());
        let mut live = client.secrets.iter().filter(|known| known.is_live(now));
        let known = live
            .find(|known| known.hash.matches(&hash))
            .ok_or_else(|| Error::invalid_client(Auth::Secret))?;
        let is_old = |at: Timestamp| now.since(at) >= SECRET_TOUCH;
        noted = known
            .last_used_at
            .is_none_or(is_old)
            .then(|| known.id.clone());
    }
    if !client.admits(address) {
        return Err(Error::invalid_client(Auth::Network));
    }
    Ok(AuthenticatedClient {
        secret: noted,
        registration,
    })
}

/// §2.3.1: both halves of the pair are form-encoded before they are joined.
fn basic(header: &[u8]) -> Option<(String, Secret)> {
    let text = std::str::from_utf8(header).ok()?;
    let (scheme, encoded) = text.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (id, secret) = pair.split_once(':')?;
    Some((form_decoded(id)?, Secret::from_text(form_decoded(secret)?)))
}

fn form_decoded(text: &str) -> Option<String> {
    if text.contains('&') || text.contains('=') {
        // Unencoded, as many clients send it; no field boundary may come from it.
        return Some(text.to_owned());
    }
    let params = Params::parse(format!("v={text}").as_bytes()).ok()?;
    params.one("v").ok()?.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn present_basic(pair: &str) -> Result<ClientCredentials, Error> {
        let header = format!("Basic {}", STANDARD.encode(pair));
        present(&[header.as_bytes()], &Params::default())
    }

    #[test]
    fn both_halves_of_basic_are_form_decoded() {
        let presented = present_basic("a%3Ab:s+e%25cret").unwrap();
        assert_eq!(presented.client_id.as_str(), "a:b");
        assert_eq!(presented.secret.unwrap().expose(), "s e%cret");
        for broken in ["no-colon", "id:se%cret", ":secret", "id:"] {
            assert!(present_basic(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn one_method_at_a_time() {
        let form = |text: &str| Params::parse(text.as_bytes()).unwrap();
        let header = format!("basic {}", STANDARD.encode("web:s"));
        let with =
            |text: &str| present(&[header.as_bytes()], &form(text)).map_err(|e| e.code.as_str());
        assert!(with("client_id=web").is_ok());
        for double in [
            "client_id=other",
            "client_secret=s",
            "client_id=web&client_secret=s",
            "client_assertion=x",
        ] {
            assert_eq!(with(double).unwrap_err(), "invalid_request", "{double}");
        }
        let missing = present(&[], &form("grant_type=x")).unwrap_err();
        assert_eq!(missing.code.as_str(), "invalid_client");
    }
}
