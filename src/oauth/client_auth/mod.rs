//! Client authentication: RFC 6749 §2.3. One file per kind of credential; a new method is a file, a variant of
//! [`AuthMethod`], and a variant of [`Credential`].

mod private_key_jwt;
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
use private_key_jwt::Assertion;
pub use private_key_jwt::{AssertionRules, UsedAssertion};
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
    /// `private_key_jwt`.
    Assertion(Assertion),
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
        Type => Detail::new("client.auth_failed", "type"),
        Alg => Detail::new("client.auth_failed", "alg"),
        Key => Detail::new("client.auth_failed", "key"),
        Signature => Detail::new("client.auth_failed", "signature"),
        Audience => Detail::new("client.auth_failed", "aud"),
        Claim => Detail::new("client.auth_failed", "claim"),
        Replay => Detail::new("client.auth_failed", "replay"),
        Method => Detail::new("client.auth_failed", "method"),
        Secret => Detail::new("client.auth_failed", "secret"),
        Network => Detail::new("client.auth_failed", "network"),
    }
}

impl Credential {
    fn method(&self) -> AuthMethod {
        match self {
            Self::Secret(secret) => secret.method(),
            Self::Assertion(_) => AuthMethod::PrivateKeyJwt,
            Self::None => AuthMethod::None,
        }
    }

    /// Verifies the credential.
    fn verify(
        &self,
        client: &Client,
        rules: &AssertionRules,
        now: Timestamp,
    ) -> Result<Verified, AuthenticationError> {
        let mut verified = Verified {
            used_secret: None,
            used_assertion: None,
        };
        match self {
            Self::Secret(secret) => {
                let used = secret.verify(client, now);
                verified.used_secret = Some(used.ok_or(AuthenticationError::Secret)?);
            }
            Self::Assertion(assertion) => {
                let keys = client.jwks.as_ref().ok_or(AuthenticationError::Key)?;
                let used = assertion.verify(client, keys, rules, now)?;
                verified.used_assertion = Some(used);
            }
            Self::None => {}
        }
        Ok(verified)
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
        if basic.is_some() || body_secret.is_some() {
            return Err(multiple());
        }
        return read_assertion(form, body_id);
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

/// Reads the assertion of a request (RFC 7523 §2.2). A `client_id` beside it is optional and must be the same.
fn read_assertion(form: &Params, body_id: Option<&str>) -> Result<ClientCredentials, Error> {
    let multiple = |_| Error::invalid_request(AuthenticationError::Multiple);
    let text = form.one("client_assertion").map_err(multiple)?;
    let kind = form.one("client_assertion_type").map_err(multiple)?;
    let parsed = Assertion::parse(text.unwrap_or_default(), kind);
    let (client_id, assertion) = parsed.map_err(Error::invalid_client)?;
    if body_id.is_some_and(|id| id != client_id.as_str()) {
        return Err(Error::invalid_client(AuthenticationError::Claim));
    }
    Ok(ClientCredentials {
        client_id,
        credential: Credential::Assertion(assertion),
    })
}

/// The proof that credentials are those of a client. Only [`verify`] creates one.
#[derive(Debug)]
pub struct Verified {
    used_secret: Option<UsedSecret>,
    used_assertion: Option<UsedAssertion>,
}

impl Verified {
    /// Returns the assertion, which the caller must record as used. It is accepted only if it was not used before.
    pub fn used_assertion(&self) -> Option<&UsedAssertion> {
        self.used_assertion.as_ref()
    }

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

/// Returns the error of an assertion that was used before.
pub fn used_before(client_id: &ClientId) -> Error {
    Error::invalid_client(AuthenticationError::Replay).about_client(client_id)
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
    rules: &AssertionRules,
    now: Timestamp,
) -> Result<Verified, Error> {
    let used = credentials.credential.method();
    let refuse = |reason| Error::invalid_client(reason).about_client(&client.id);
    if !client.auth_method.accepts(used) {
        let error = refuse(AuthenticationError::Method);
        return Err(error.comparing(used.as_str(), client.auth_method.as_str()));
    }
    let verified = credentials
        .credential
        .verify(client, rules, now)
        .map_err(refuse)?;
    if !client.admits(address) {
        return Err(refuse(AuthenticationError::Network));
    }
    Ok(verified)
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
