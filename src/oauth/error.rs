//! Errors of the protocol: a public code with its status, and a private reason that is logged and
//! never sent. RFC 6749 §4.1.2.1, §5.2, and the codes of each extension.

/// What went wrong, for the other side (`code`) and for the operator (`detail`, `source`).
#[derive(Debug, thiserror::Error)]
#[error("{} ({}: {})", code.as_str(), detail.event, detail.reason)]
pub struct Error {
    /// What the client is told.
    pub code: Code,
    /// Why, for the log alone.
    pub detail: Detail,
    /// What failed underneath, if it was ours.
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The registered error codes, in the order of their documents. Each knows its status and sentence.
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
    /// RFC 6749 §4.1.2.1; at the token endpoint the body of a 503.
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
    /// The registered name.
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

    /// The HTTP status where the answer is not a redirect.
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidClient => 401,
            Self::ServerError => 500,
            Self::TemporarilyUnavailable => 503,
            _ => 400,
        }
    }

    /// The fixed sentence: printable ASCII, nothing of the request in it (RFC 6749 §4.1.2.1).
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

/// The private reason: the log's `event` and `reason`, and how loud it is. One enum per file of the
/// protocol turns into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detail {
    /// `noun.verb`, such as `token.rejected`.
    pub event: &'static str,
    /// One word or two, such as `pkce`.
    pub reason: &'static str,
    /// Whether an operator should be told.
    pub severity: Severity,
}

/// How loud an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Daily life.
    Normal,
    /// Has a metric and an alert.
    High,
}

impl Detail {
    /// An ordinary refusal.
    pub const fn new(event: &'static str, reason: &'static str) -> Self {
        Self {
            event,
            reason,
            severity: Severity::Normal,
        }
    }

    /// A refusal that an operator should see.
    pub const fn high(event: &'static str, reason: &'static str) -> Self {
        Self {
            event,
            reason,
            severity: Severity::High,
        }
    }
}

macro_rules! constructors {
    ($($name:ident $code:ident)*) => {
        impl Error {$(
            #[doc = concat!("`", stringify!($name), "` with its private reason.")]
            pub fn $name(detail: impl Into<Detail>) -> Self {
                Self { code: Code::$code, detail: detail.into(), source: None }
            }
        )*}
    };
}

impl Error {
    /// 503: nothing could be signed.
    pub fn unsigned(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self {
            code: Code::TemporarilyUnavailable,
            detail: Detail::high("key.unusable", "blocking"),
            source: Some(source.into()),
        }
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

impl From<super::ledger::Failure> for Error {
    /// Nothing is answered from doubtful state: any storage failure is a 503.
    fn from(failure: super::ledger::Failure) -> Self {
        Self {
            code: Code::TemporarilyUnavailable,
            detail: Detail::high("storage.error", "storage"),
            source: Some(Box::new(failure)),
        }
    }
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
        }
    }
}
