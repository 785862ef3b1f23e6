//! Errors of the protocol: a public code with its HTTP status, and a private reason that is logged and never
//! sent. RFC 6749 §4.1.2.1, §5.2, and the codes of each extension.

use crate::id::ClientId;

/// An error of the protocol: `code` is for the client, `detail` and `source` are for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{} ({}: {})", code.as_str(), detail.event, detail.reason)]
pub struct Error {
    /// The public error code.
    pub code: Code,
    /// The private reason, only for the log.
    pub detail: Detail,
    /// The underlying error, if this server caused it.
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
    /// What was received and what is registered, only for the log.
    pub compared: Option<Box<Compared>>,
}

/// The received value that a request is rejected for, and the registered value that it differs from. An operator sees
/// from both what to change. Neither contains a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compared {
    /// The client, if it is registered.
    pub client_id: Option<ClientId>,
    /// Of the request.
    pub received: String,
    /// Of the client.
    pub registered: String,
}

/// The registered error codes, in the order of their documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// RFC 6749 §4.1.2.1, §5.2.
    InvalidRequest,
    /// RFC 6749 §4.1.2.1, §5.2.
    UnauthorizedClient,
    /// RFC 6749 §4.1.2.1.
    AccessDenied,
    /// RFC 6749 §4.1.2.1.
    UnsupportedResponseType,
    /// RFC 6749 §4.1.2.1, §5.2.
    InvalidScope,
    /// RFC 6749 §4.1.2.1.
    ServerError,
    /// RFC 6749 §4.1.2.1; also in the body of a 503 of the token endpoint.
    TemporarilyUnavailable,
    /// RFC 6749 §5.2.
    InvalidClient,
    /// RFC 6749 §5.2.
    InvalidGrant,
    /// RFC 6749 §5.2.
    UnsupportedGrantType,
    /// OIDC Core §3.1.2.6.
    LoginRequired,
    /// OIDC Core §3.1.2.6.
    ConsentRequired,
    /// OIDC Core §3.1.2.6.
    RequestNotSupported,
    /// OIDC Core §3.1.2.6.
    RequestUriNotSupported,
    /// OpenID Connect Core Error Code unmet_authentication_requirements §2.
    UnmetAuthenticationRequirements,
    /// RFC 7591 §3.2.2.
    InvalidRedirectUri,
    /// RFC 7591 §3.2.2.
    InvalidClientMetadata,
    /// RFC 8707 §2.
    InvalidTarget,
}

impl Code {
    /// Returns the registered name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::UnauthorizedClient => "unauthorized_client",
            Self::AccessDenied => "access_denied",
            Self::UnsupportedResponseType => "unsupported_response_type",
            Self::InvalidScope => "invalid_scope",
            Self::ServerError => "server_error",
            Self::TemporarilyUnavailable => "temporarily_unavailable",
            Self::InvalidClient => "invalid_client",
            Self::InvalidGrant => "invalid_grant",
            Self::UnsupportedGrantType => "unsupported_grant_type",
            Self::LoginRequired => "login_required",
            Self::ConsentRequired => "consent_required",
            Self::RequestNotSupported => "request_not_supported",
            Self::RequestUriNotSupported => "request_uri_not_supported",
            Self::UnmetAuthenticationRequirements => "unmet_authentication_requirements",
            Self::InvalidRedirectUri => "invalid_redirect_uri",
            Self::InvalidClientMetadata => "invalid_client_metadata",
            Self::InvalidTarget => "invalid_target",
        }
    }

    /// Returns the HTTP status of a response that is not a redirect.
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidClient => 401,
            Self::ServerError => 500,
            Self::TemporarilyUnavailable => 503,
            _ => 400,
        }
    }

    /// Returns the fixed sentence. It is printable ASCII and contains nothing of the request (RFC 6749
    /// §4.1.2.1).
    pub fn sentence(self) -> &'static str {
        match self {
            Self::InvalidRequest => {
                "The request is missing a parameter, repeats one, or is otherwise malformed."
            }
            Self::UnauthorizedClient => "The client may not use this grant type.",
            Self::AccessDenied => "The request was denied.",
            Self::UnsupportedResponseType => "Only the response type code is supported.",
            Self::InvalidScope => {
                "The requested scope is unknown, malformed or not allowed to this client."
            }
            Self::ServerError => "The server met an unexpected condition.",
            Self::TemporarilyUnavailable => {
                "The server cannot answer at the moment; try again shortly."
            }
            Self::InvalidClient => "Client authentication failed.",
            Self::InvalidGrant => {
                "The grant is invalid, expired, revoked, or was issued to another client."
            }
            Self::UnsupportedGrantType => "The grant type is not supported.",
            Self::LoginRequired => "The user must sign in.",
            Self::ConsentRequired => "The user must give consent.",
            Self::RequestNotSupported => "The request parameter is not supported.",
            Self::RequestUriNotSupported => "The request_uri parameter is not supported.",
            Self::UnmetAuthenticationRequirements => {
                "The required authentication context cannot be met."
            }
            Self::InvalidRedirectUri => "A redirect URI is not acceptable.",
            Self::InvalidClientMetadata => "The client metadata is not acceptable.",
            Self::InvalidTarget => {
                "The requested resource is unknown, malformed or not allowed to this client."
            }
        }
    }
}

/// The public description of an error that one parameter causes. It names the parameter, so that the developer
/// of the client knows what to change (RFC 7636 §4.4.1, RFC 6749 §5.2). The texts are fixed, so they contain
/// nothing of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description(&'static str);

macro_rules! descriptions {
    ($($name:ident $text:literal)*) => {
        impl Description {
            $(#[doc = $text] pub const $name: Self = Self($text);)*

            /// Returns the text.
            pub const fn as_str(self) -> &'static str {
                self.0
            }

            /// Every description.
            pub const ALL: &[&str] = &[$($text),*];
        }
    };
}

descriptions! {
    RESPONSE_TYPE "response_type is required."
    RESPONSE_MODE "response_mode must be query or form_post."
    CODE_CHALLENGE "code_challenge is required (PKCE, S256)."
    CODE_CHALLENGE_FORM "code_challenge must be the SHA-256 of the code verifier in base64url, 43 characters."
    CODE_CHALLENGE_METHOD "code_challenge_method must be S256."
    SCOPE "scope is required."
    STATE "state must be printable ASCII, at most 2048 characters."
    NONCE "nonce must have at most 512 characters."
    ID_TOKEN_HINT "id_token_hint is not an ID token of this server."
    CLAIMS "claims must be a JSON object as in OpenID Connect Core 5.5."
    PROMPT "prompt has an unknown value, or combines none with another value."
    MAX_AGE "max_age must be a number of seconds."
    GRANT_TYPE "grant_type is required."
    CODE "code is required."
    REFRESH_TOKEN "refresh_token is required."
    TOKEN "token is required."
    RESOURCE_SERVER "Only a registered resource server may introspect tokens."
    OTHER_CLIENT "token was issued to another client."
    ONE_RESOURCE "resource may be included once in a token request."
    CLIENT_AUTHENTICATION "The request must use one method of client authentication and one client_id."
    IN_QUERY "Parameters must be in the body, not in the URL."
    CONTENT_TYPE "The body must be application/x-www-form-urlencoded, in UTF-8."
    REPEATED "A parameter is included more than once."
    ENCODING "A parameter is not valid UTF-8 in percent-encoding."
    CONTROL_CHARACTER "A parameter has a control character."
}

/// The private reason of an error, for the log. Each file of the protocol defines its reasons as an enum that
/// converts to this type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detail {
    /// The log event, such as `token.rejected`.
    pub event: &'static str,
    /// One or two words, such as `pkce`.
    pub reason: &'static str,
    /// Whether it needs the attention of an operator.
    pub severity: Severity,
    /// The public description, if it says more than the sentence of the code.
    pub description: Option<Description>,
    /// The cause, if a caller acts on it.
    pub cause: Cause,
}

/// How much attention an event needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Expected during normal operation.
    Normal,
    /// Has a metric and an alert.
    High,
}

/// A cause on which a caller acts, by another text for the user or by a check of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No caller acts on it.
    Other,
    /// The client is unknown, disabled or not named.
    UnknownClient,
    /// The redirect URI is not registered for the client, or is missing.
    UnregisteredRedirectUri,
    /// The grant of a token is unknown, revoked or expired.
    GrantInactive,
    /// A refresh token is newer than its stored grant.
    RefreshTokenAhead,
}

impl Detail {
    /// Creates an ordinary rejection.
    pub const fn new(event: &'static str, reason: &'static str) -> Self {
        Self {
            event,
            reason,
            severity: Severity::Normal,
            description: None,
            cause: Cause::Other,
        }
    }

    /// Creates a rejection that needs the attention of an operator.
    pub const fn high(event: &'static str, reason: &'static str) -> Self {
        Self {
            severity: Severity::High,
            ..Self::new(event, reason)
        }
    }

    /// Adds a public description.
    #[must_use]
    pub const fn described(self, description: Description) -> Self {
        Self {
            description: Some(description),
            ..self
        }
    }

    /// Adds the cause.
    #[must_use]
    pub const fn caused_by(self, cause: Cause) -> Self {
        Self { cause, ..self }
    }
}

macro_rules! constructors {
    ($($name:ident $code:ident)*) => {
        impl Error {$(
            #[doc = concat!("Creates `", stringify!($name), "` with its private reason.")]
            pub fn $name(detail: impl Into<Detail>) -> Self {
                Self { code: Code::$code, detail: detail.into(), source: None, compared: None }
            }
        )*}
    };
}

impl Error {
    /// Returns the `error_description`: printable ASCII from a fixed table (RFC 6749 §4.1.2.1).
    pub fn description(&self) -> &'static str {
        self.detail
            .description
            .map_or(self.code.sentence(), Description::as_str)
    }

    /// Creates the 503 error of a failed signature.
    pub fn unsigned(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self {
            code: Code::TemporarilyUnavailable,
            detail: Detail::high("key.unusable", "blocking"),
            source: Some(source.into()),
            compared: None,
        }
    }

    /// Adds what was received and what is registered, for the log.
    #[must_use]
    pub fn comparing(self, received: impl Into<String>, registered: impl Into<String>) -> Self {
        let client_id = self.compared.and_then(|compared| compared.client_id);
        Self {
            compared: Some(Box::new(Compared {
                client_id,
                received: received.into(),
                registered: registered.into(),
            })),
            ..self
        }
    }

    /// Names the registered client, for the log.
    #[must_use]
    pub fn about_client(mut self, client_id: &ClientId) -> Self {
        let compared = self.compared.get_or_insert_with(|| {
            Box::new(Compared {
                client_id: None,
                received: String::new(),
                registered: String::new(),
            })
        });
        compared.client_id = Some(client_id.clone());
        self
    }
}

constructors! {
    invalid_request InvalidRequest
    unauthorized_client UnauthorizedClient
    access_denied AccessDenied
    unsupported_response_type UnsupportedResponseType
    invalid_scope InvalidScope
    invalid_client InvalidClient
    invalid_grant InvalidGrant
    unsupported_grant_type UnsupportedGrantType
    login_required LoginRequired
    consent_required ConsentRequired
    request_not_supported RequestNotSupported
    request_uri_not_supported RequestUriNotSupported
    unmet_authentication_requirements UnmetAuthenticationRequirements
    invalid_redirect_uri InvalidRedirectUri
    invalid_client_metadata InvalidClientMetadata
    invalid_target InvalidTarget
}

impl From<crate::keys::KeyError> for Error {
    fn from(error: crate::keys::KeyError) -> Self {
        use crate::keys::KeyError;
        let reason = match error {
            KeyError::NoLease => "lease",
            KeyError::Clock => "clock",
            KeyError::Restored => "restored",
            _ => "key",
        };
        Self {
            code: Code::TemporarilyUnavailable,
            detail: Detail::high("key.unusable", reason),
            source: Some(Box::new(error)),
            compared: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_have_allowed_characters_only() {
        // RFC 6749 App. A.8.
        let is_allowed = |b: u8| matches!(b, 0x20..=0x21 | 0x23..=0x5b | 0x5d..=0x7e);
        for text in Description::ALL {
            assert!(text.bytes().all(is_allowed), "{text}");
        }
    }
}
