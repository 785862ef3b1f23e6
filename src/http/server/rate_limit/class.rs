//! Classes of routes (policy §5).

/// Routes that share a budget, in every spelling of their path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// `/oauth2/authorize`.
    Authorize,
    /// `/login`, `/consent`, `/setup`.
    Login,
    /// `/oauth2/token`.
    Token,
    /// `/oauth2/par`.
    Par,
    /// `/oauth2/introspect`.
    Introspect,
    /// `/oauth2/revoke`.
    Revoke,
    /// `/oauth2/userinfo`.
    Userinfo,
    /// `/oauth2/end_session`.
    Logout,
    /// `/oauth2/register`.
    Register,
    /// `/oauth2/device_authorization`, `/device`.
    Device,
    /// `/account`.
    Account,
    /// Discovery and keys.
    Metadata,
    /// `/revocations`.
    Feed,
    /// Style sheets and scripts of the pages.
    Assets,
    /// Everything else, which does not exist.
    Other,
}

impl Class {
    /// Returns the class of a path. Upper case and a trailing slash are ignored.
    pub fn of(path: &str) -> Self {
        let path = path.trim_end_matches('/').to_ascii_lowercase();
        let below = |root: &str| {
            path.strip_prefix(root)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        match path.as_str() {
            "/oauth2/authorize" => Self::Authorize,
            "/login" | "/consent" | "/setup" => Self::Login,
            "/oauth2/token" => Self::Token,
            "/oauth2/par" => Self::Par,
            "/oauth2/introspect" => Self::Introspect,
            "/oauth2/revoke" => Self::Revoke,
            "/oauth2/userinfo" => Self::Userinfo,
            "/oauth2/end_session" => Self::Logout,
            "/oauth2/device_authorization" | "/device" => Self::Device,
            "" | "/account" => Self::Account,
            "/oauth2/jwks" => Self::Metadata,
            _ if below("/oauth2/register") => Self::Register,
            _ if below("/.well-known") => Self::Metadata,
            _ if below("/revocations") => Self::Feed,
            _ if below("/assets") => Self::Assets,
            _ => Self::Other,
        }
    }

    /// Returns whether its responses are pages.
    pub fn is_page(self) -> bool {
        matches!(
            self,
            Self::Authorize | Self::Login | Self::Logout | Self::Account | Self::Device
        )
    }

    /// Returns whether caches may store its responses, so that only a 429 may describe the budget of one caller.
    pub(in crate::http) fn is_cached(self) -> bool {
        matches!(self, Self::Metadata | Self::Assets)
    }
}
