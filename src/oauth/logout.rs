//! Logout at the request of a client: OpenID Connect RP-Initiated Logout 1.0. The tokens that tell clients of a logout:
//! OpenID Connect Back-Channel Logout 1.0.

use std::time::Duration;

use serde::Serialize;

use super::client::Client;
use super::error::{Detail, Error};
use super::issue::id_token::Hint;
use super::redirect_uri::{all_without_query, without_query};
use super::request::params::{Params, Problem};
use crate::id::{ClientId, Sid, UserId};
use crate::time::Timestamp;

/// The parameters of a logout request (§2) that are read. `logout_hint` and `ui_locales`, both OPTIONAL,
/// are not: a session names its own user, and there is one language.
pub const READ: [&str; 4] = [
    "id_token_hint",
    "client_id",
    "post_logout_redirect_uri",
    "state",
];

/// A parsed logout request (§2).
#[derive(Clone, Copy, Debug, Default)]
pub struct LogoutRequest<'a> {
    /// An ID token of the session that the client wants to end.
    pub id_token_hint: Option<&'a str>,
    /// The client that requests the logout.
    pub client_id: Option<&'a str>,
    /// Where the browser goes after logout.
    pub post_logout_redirect_uri: Option<&'a str>,
    /// Returned to that URI unchanged.
    pub state: Option<&'a str>,
}

/// Why a logout request is rejected. Nothing is logged out then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogoutError {
    /// A parameter is repeated or malformed.
    Parameter(Problem),
    /// `client_id` is not the client that the ID token was issued to (§2).
    ClientMismatch,
}

impl From<LogoutError> for Detail {
    fn from(error: LogoutError) -> Self {
        Self::new(
            "logout.rejected",
            match error {
                LogoutError::Parameter(problem) => problem.reason(),
                LogoutError::ClientMismatch => "client_id",
            },
        )
    }
}

/// The log event of an ID token hint that is not a genuine ID token of this server. It is ignored.
pub const UNREADABLE_HINT: Detail = Detail::new("logout.rejected", "id_token_hint");
/// The log event of a redirect that is refused because no known client requests it.
pub const NO_CLIENT: Detail = Detail::new("logout.bad_redirect", "client");
/// The log event of a redirect to a URI that the client did not register.
pub const UNREGISTERED: Detail = Detail::new("logout.bad_redirect", "unregistered");

/// The `typ` of logout tokens (Back-Channel Logout §2.4).
pub const LOGOUT_TOKEN_TYP: &str = "logout+jwt";

/// The lifetime of a logout token (Back-Channel Logout §2.4: at most two minutes).
const LOGOUT_TOKEN_LIFETIME: Duration = Duration::from_secs(120);

/// The claims of a logout token (Back-Channel Logout §2.4): the client `aud` is told that a session has ended.
/// Instants are in seconds.
#[derive(Clone, Debug, Serialize)]
pub struct LogoutClaims {
    iss: String,
    aud: String,
    iat: u64,
    exp: u64,
    jti: String,
    sub: String,
    sid: String,
    events: LogoutEvents,
}

#[derive(Clone, Debug, Serialize)]
struct LogoutEvents {
    #[serde(rename = "http://schemas.openid.net/event/backchannel-logout")]
    logout: LogoutEvent,
}

/// An empty object.
#[derive(Clone, Debug, Serialize)]
struct LogoutEvent {}

impl LogoutClaims {
    /// Creates the claims of one attempt. `jti` must be new.
    pub fn new(
        issuer: &str,
        client_id: &ClientId,
        user_id: &UserId,
        sid: &Sid,
        jti: String,
        now: Timestamp,
    ) -> Self {
        Self {
            iss: issuer.to_owned(),
            aud: client_id.to_string(),
            iat: now.secs(),
            exp: (now + LOGOUT_TOKEN_LIFETIME).secs(),
            jti,
            sub: user_id.to_string(),
            sid: sid.to_string(),
            events: LogoutEvents {
                logout: LogoutEvent {},
            },
        }
    }
}

impl<'a> LogoutRequest<'a> {
    /// Reads the parameters of a logout request. Others are ignored (RFC 6749 §3.1).
    ///
    /// # Errors
    /// [`LogoutError::Parameter`].
    pub fn parse(params: &'a Params) -> Result<Self, LogoutError> {
        let mut values = [None; READ.len()];
        for (value, name) in values.iter_mut().zip(READ) {
            *value = params.one(name).map_err(LogoutError::Parameter)?;
        }
        let [id_token_hint, client_id, post_logout_redirect_uri, state] = values;
        Ok(Self {
            id_token_hint,
            client_id,
            post_logout_redirect_uri,
            state,
        })
    }

    /// Names and values as they were sent, for the form that asks the user.
    pub fn fields(&self) -> Vec<(String, String)> {
        let values = [
            self.id_token_hint,
            self.client_id,
            self.post_logout_redirect_uri,
            self.state,
        ];
        let sent = READ.into_iter().zip(values);
        sent.filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
            .collect()
    }

    /// Returns the client that requests the logout: the client of the hint, which `client_id` must equal, or
    /// without a hint the client of `client_id` (§2).
    ///
    /// # Errors
    /// [`LogoutError::ClientMismatch`].
    pub fn requested_by(&self, hint: Option<&Hint>) -> Result<Option<ClientId>, LogoutError> {
        match (hint.map(|hint| hint.client_id.as_str()), self.client_id) {
            (Some(hinted), Some(named)) if hinted != named => Err(LogoutError::ClientMismatch),
            (hinted, named) => Ok(hinted.or(named).map(ClientId::from)),
        }
    }

    /// Returns the URI to which the browser is redirected after logout. The client must have registered it,
    /// byte for byte (§3). `None` if no redirect is requested.
    ///
    /// # Errors
    /// [`NO_CLIENT`], [`UNREGISTERED`].
    pub fn destination(&self, client: Option<&Client>) -> Result<Option<String>, Error> {
        let Some(uri) = self.post_logout_redirect_uri else {
            return Ok(None);
        };
        let client = client.ok_or_else(|| Error::invalid_request(NO_CLIENT))?;
        let registered = &client.post_logout_redirect_uris;
        if !registered.iter().any(|registered| registered == uri) {
            let error = Error::invalid_request(UNREGISTERED);
            return Err(error.comparing(without_query(uri), all_without_query(registered)));
        }
        Ok(Some(match self.state {
            None => uri.to_owned(),
            Some(state) => {
                let query = form_urlencoded::Serializer::new(String::new())
                    .append_pair("state", state)
                    .finish();
                format!("{uri}{}{query}", if uri.contains('?') { '&' } else { '?' })
            }
        }))
    }
}
