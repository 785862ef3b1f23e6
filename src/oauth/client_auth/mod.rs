//! Client authentication: RFC 6749 §2.3. One file per kind of credential; a new method is a file, a variant of
//! [`AuthMethod`], and a variant of [`Credential`].

mod secret;

use std::net::IpAddr;
use std::sync::Arc;

use portcullis_verifier::MaxAge;

use super::client::{AuthMethod, Client, Registration};
use super::error::{Description, Error};
use super::macros::details;
use super::request::params::Params;
use super::resource::Resource;
use crate::id::ClientId;
use crate::time::Timestamp;
use secret::{ClientSecretCredential, UsedSecret};

/// The credentials of a request: the claimed client and exactly one credential.
#[derive(Debug)]
pub struct ClientCredentials {
    /// The claimed client.
    pub client_id: ClientId,
    credential: Credential,
}

/// The credential of each method.
#[derive(Debug)]
enum Credential {
    /// `client_secret_basic` or `client_secret_post`.
    Secret(ClientSecretCredential),
    /// `none`: a public client sends only its id.
    None,
}

/// An authenticated client. Only [`Verified::client`] creates one.
#[derive(Clone, Debug)]
pub struct AuthenticatedClient {
    registration: Arc<Registration>,
    used_secret: Option<UsedSecret>,
}

impl AuthenticatedClient {
    /// Returns the client.
    pub fn client(&self) -> &Client {
        &self.registration.client
    }

    /// Returns the APIs for which it may request tokens.
    pub fn resources(&self) -> &[Resource] {
        &self.registration.resources
    }

    /// Returns the maximum staleness of the revocation data that it may use.
    pub fn max_age(&self) -> MaxAge {
        self.registration.max_age
    }

    /// Returns the feed epoch of its tokens.
    pub fn feed_epoch(&self) -> i64 {
        self.registration.feed_epoch
    }

    /// Returns the row id of the client secret whose last use is to be recorded, if its last record is old
    /// enough.
    pub fn secret_to_touch(&self) -> Option<&str> {
        self.used_secret.as_ref()?.id_to_touch()
    }
}

details! {
    /// Why client authentication fails.
    enum AuthenticationError {
        Malformed => Detail::new("client.auth_failed", "malformed"),
        Missing => Detail::new("client.auth_failed", "missing"),
        Multiple =>
            Detail::new("client.auth_failed", "multi").described(Description::CLIENT_AUTHENTICATION),
        UnknownClient => Detail::new("client.auth_failed", "unknown"),
        Method => Detail::new("client.auth_failed", "method"),
        Secret => Detail::new("client.auth_failed", "secret"),
        Network => Detail::new("client.auth_failed", "network"),
    }
}

impl Credential {
    fn method(&self) -> AuthMethod {
        match self {
            Self::Secret(secret) => secret.method(),
            Self::None => AuthMethod::None,
        }
    }

    /// Verifies the credential. Returns the client secret that matches, if the method uses one.
    fn verify(
        &self,
        client: &Client,
        now: Timestamp,
    ) -> Result<Option<UsedSecret>, AuthenticationError> {
        match self {
            Self::Secret(secret) => {
                let used = secret.verify(client, now);
                used.map(Some).ok_or(AuthenticationError::Secret)
            }
            Self::None => Ok(None),
        }
    }
}

/// Reads the credentials of a request from the values of its `Authorization` headers and from its form.
///
/// # Errors
/// `invalid_request` for more than one method (§2.3), `invalid_client` for no or malformed credentials.
pub fn read_credentials(
    authorization: &[&[u8]],
    form: &Params,
) -> Result<ClientCredentials, Error> {
    let multiple = || Error::invalid_request(AuthenticationError::Multiple);
    let body_id = form.one("client_id").map_err(|_| multiple())?;
    let body_secret = form.one("client_secret").map_err(|_| multiple())?;
    let basic = match authorization {
        [] => None,
        [header] => Some(
            secret::read_basic(header)
                .ok_or_else(|| Error::invalid_client(AuthenticationError::Malformed))?,
        ),
        _ => return Err(multiple()),
    };
    if form.has("client_assertion") {
        // Assertions (RFC 7523 §2.2) are not supported. Ignoring one would treat the client as public.
        return Err(if basic.is_some() || body_secret.is_some() {
            multiple()
        } else {
            Error::invalid_client(AuthenticationError::Method)
        });
    }
    let (client_id, credential) = match (basic, body_id, body_secret) {
        (Some(_), _, Some(_)) => return Err(multiple()),
        (Some((id, _)), Some(body_id), None) if id != body_id => return Err(multiple()),
        (Some((id, credential)), _, None) => (ClientId::from(id), Credential::Secret(credential)),
        (None, Some(id), Some(secret)) => (
            ClientId::from(id),
            Credential::Secret(ClientSecretCredential::in_form(secret)),
        ),
        (None, Some(id), None) => (ClientId::from(id), Credential::None),
        (None, None, _) => return Err(Error::invalid_client(AuthenticationError::Missing)),
    };
    Ok(ClientCredentials {
        client_id,
        credential,
    })
}

/// The proof that credentials are those of a client. Only [`verify`] creates one.
#[derive(Debug)]
pub struct Verified {
    used_secret: Option<UsedSecret>,
}

impl Verified {
    /// Returns the client with everything that its requests need.
    pub fn client(self, registration: Arc<Registration>) -> AuthenticatedClient {
        AuthenticatedClient {
            used_secret: self.used_secret,
            registration,
        }
    }
}

/// Returns the error of credentials that name no registered client.
pub fn unknown_client() -> Error {
    Error::invalid_client(AuthenticationError::UnknownClient)
}

/// Verifies credentials against the client that they name. `address` is `None` if the proxy does not say where the
/// request comes from.
///
/// # Errors
/// `invalid_client`. An unknown client, an unregistered method, a wrong secret and a forbidden address have
/// the same public error.
pub fn verify(
    credentials: &ClientCredentials,
    client: &Client,
    address: Option<IpAddr>,
    now: Timestamp,
) -> Result<Verified, Error> {
    let used = credentials.credential.method();
    let refuse = |reason| Error::invalid_client(reason).about_client(&client.id);
    if !client.auth_method.accepts(used) {
        let error = refuse(AuthenticationError::Method);
        return Err(error.comparing(used.as_str(), client.auth_method.as_str()));
    }
    let used_secret = credentials.credential.verify(client, now).map_err(refuse)?;
    if !client.admits(address) {
        return Err(refuse(AuthenticationError::Network));
    }
    Ok(Verified { used_secret })
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    #[test]
    fn only_one_method_is_accepted() {
        let form = |text: &str| Params::parse(text.as_bytes()).unwrap();
        let header = format!("basic {}", STANDARD.encode("web:s"));
        let with = |text: &str| {
            read_credentials(&[header.as_bytes()], &form(text)).map_err(|e| e.code.as_str())
        };
        assert!(with("client_id=web").is_ok());
        for double in [
            "client_id=other",
            "client_secret=s",
            "client_id=web&client_secret=s",
            "client_assertion=x",
        ] {
            assert_eq!(with(double).unwrap_err(), "invalid_request", "{double}");
        }
        let missing = read_credentials(&[], &form("grant_type=x")).unwrap_err();
        assert_eq!(missing.code.as_str(), "invalid_client");
    }
}
