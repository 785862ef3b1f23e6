//! Why a token was rejected, and the response to the caller (RFC 6750 §3).

/// Why a token was rejected: the first check that failed.
///
/// The variant and its `Display` text are for logs only. Build the response to the caller from
/// [`status`](Self::status), [`code`](Self::code), [`description`](Self::description) and
/// [`www_authenticate`](Self::www_authenticate).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejected {
    /// The request has no token.
    #[error("no token")]
    Missing,
    /// The request has two `Authorization` headers, or one that cannot be read.
    #[error("the Authorization header is invalid")]
    Request,
    /// The token has more than 16 KiB.
    #[error("the token is too large")]
    TooLarge,
    /// The token does not consist of three parts of strict base64url that contain JSON, or it has a
    /// critical header parameter.
    #[error("not a well-formed JWT")]
    Malformed,
    /// The `alg` is not accepted, or it is not the algorithm of the key.
    #[error("the algorithm is not accepted")]
    Algorithm,
    /// The `typ` is not that of an access token.
    #[error("not an access token")]
    Type,
    /// No key has this `kid`.
    #[error("the key is unknown")]
    UnknownKey,
    /// The signature is invalid.
    #[error("the signature is invalid")]
    Signature,
    /// A claim is missing, duplicate or of the wrong type. The field is its name, if it could be
    /// determined.
    #[error("invalid claim: {0}")]
    Claims(&'static str),
    /// The token is from another issuer.
    #[error("from another issuer")]
    Issuer,
    /// The token is for another audience.
    #[error("for another audience")]
    Audience,
    /// The token has expired.
    #[error("expired")]
    Expired,
    /// The `nbf` or `iat` of the token is in the future.
    #[error("not yet valid")]
    NotYetValid,
    /// The token is valid but lacks a scope that the request needs.
    #[error("insufficient scope, needs: {needed}")]
    Scope {
        /// All scopes that the request needs, separated by spaces.
        needed: String,
    },
    /// The token is valid, but the request needs a stronger or more recent authentication of the
    /// user (RFC 9470).
    #[error("a stronger or more recent authentication is needed")]
    StepUp {
        /// The acceptable authentication context classes, separated by spaces. Empty if any class
        /// is acceptable.
        acr_values: String,
        /// Maximum age of the authentication, in seconds.
        max_age: Option<u64>,
    },
    /// The token is revoked, directly or through its session, grant, user, client or key.
    #[error("revoked")]
    Revoked,
    /// The revocation data is older than the request allows, so it is unknown whether the token is
    /// active.
    #[error("the revocation data is too old")]
    Stale,
    /// There are no keys, because no fetch has succeeded for a day.
    #[error("no keys to verify with")]
    Unavailable,
}

impl Rejected {
    /// Returns the HTTP status code of the response.
    pub fn status(&self) -> u16 {
        match self {
            Self::Request => 400,
            Self::Scope { .. } => 403,
            Self::Unavailable | Self::Stale => 503,
            _ => 401,
        }
    }

    /// Returns the error code of RFC 6750 §3.1 or RFC 9470 §3. Returns `None` if the request has no
    /// token, because such a response must not contain a code (RFC 6750 §3.1), and if the cause is
    /// not the request (503).
    pub fn code(&self) -> Option<&'static str> {
        match self {
            Self::Missing | Self::Unavailable | Self::Stale => None,
            Self::Request => Some("invalid_request"),
            Self::Scope { .. } => Some("insufficient_scope"),
            Self::StepUp { .. } => Some("insufficient_user_authentication"),
            _ => Some("invalid_token"),
        }
    }

    /// Returns the value of the `Retry-After` header in seconds (RFC 9110 §10.2.3), if the status
    /// is 503.
    pub fn retry_after_secs(&self) -> Option<u64> {
        (self.status() == 503).then_some(2)
    }

    /// Returns the body of the response, in the JSON format of a token endpoint (RFC 6749 §5.2). It
    /// is empty if the request has no token, because such a response must not describe an error
    /// (RFC 6750 §3.1).
    pub fn body(&self) -> String {
        if matches!(self, Self::Missing) {
            return String::new();
        }
        let error = self.code().unwrap_or("temporarily_unavailable");
        format!(
            r#"{{"error":"{error}","error_description":"{}"}}"#,
            self.description()
        )
    }

    /// All values of [`reason`](Self::reason).
    pub(crate) const REASONS: [&'static str; 18] = [
        "missing",
        "request",
        "too_large",
        "malformed",
        "algorithm",
        "type",
        "unknown_key",
        "signature",
        "claims",
        "issuer",
        "audience",
        "expired",
        "not_yet_valid",
        "scope",
        "step_up",
        "revoked",
        "stale",
        "unavailable",
    ];

    /// Returns the variant as one word, for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Request => "request",
            Self::TooLarge => "too_large",
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::Type => "type",
            Self::UnknownKey => "unknown_key",
            Self::Signature => "signature",
            Self::Claims(_) => "claims",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Scope { .. } => "scope",
            Self::StepUp { .. } => "step_up",
            Self::Revoked => "revoked",
            Self::Stale => "stale",
            Self::Unavailable => "unavailable",
        }
    }

    /// Returns a fixed sentence for the caller. For an invalid token, it reveals only whether the
    /// token expired, because other details would only help an attacker who forges tokens.
    pub fn description(&self) -> &'static str {
        match self {
            Self::Missing => "An access token is required",
            Self::Request => "The Authorization header is malformed",
            Self::Expired => "The access token expired",
            Self::Scope { .. } => "The access token lacks a scope that this request needs",
            Self::StepUp { .. } => "The user must authenticate in another way, or again",
            Self::Unavailable | Self::Stale => "Access tokens cannot be verified at the moment",
            _ => "The access token is invalid",
        }
    }

    /// Returns the value of the `WWW-Authenticate` header (RFC 6750 §3, RFC 9470 §3). Send it with
    /// every status except 503. The `realm` names the protected resource, such as the API or its
    /// issuer.
    pub fn www_authenticate(&self, realm: &str) -> String {
        let mut challenge = format!("Bearer realm={}", quoted(realm));
        if let Some(code) = self.code() {
            challenge += &format!(
                r#", error="{code}", error_description="{}""#,
                self.description()
            );
        }
        match self {
            // An empty `scope` attribute would not tell the client what to request.
            Self::Scope { needed } if !needed.is_empty() => {
                challenge += &format!(", scope={}", quoted(needed));
            }
            Self::StepUp {
                acr_values,
                max_age,
            } => {
                if !acr_values.is_empty() {
                    challenge += &format!(", acr_values={}", quoted(acr_values));
                }
                if let Some(seconds) = max_age {
                    challenge += &format!(r#", max_age="{seconds}""#);
                }
            }
            _ => {}
        }
        challenge
    }
}

/// Formats a quoted string (RFC 9110 §5.6.4) of printable ASCII. Removes all other characters, and
/// those that would have to be escaped.
fn quoted(text: &str) -> String {
    let allowed = text
        .chars()
        .filter(|c| matches!(c, ' '..='~') && !matches!(c, '"' | '\\'));
    format!("\"{}\"", allowed.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_token_challenge_has_no_error() {
        assert_eq!(Rejected::Missing.status(), 401);
        assert_eq!(
            Rejected::Missing.www_authenticate("api"),
            r#"Bearer realm="api""#
        );
    }

    #[test]
    fn invalid_token_response_reveals_no_reason() {
        let challenge = r#"Bearer realm="api", error="invalid_token", error_description="The access token is invalid""#;
        for rejected in [
            Rejected::TooLarge,
            Rejected::Malformed,
            Rejected::Algorithm,
            Rejected::Type,
            Rejected::UnknownKey,
            Rejected::Signature,
            Rejected::Claims("exp"),
            Rejected::Issuer,
            Rejected::Audience,
            Rejected::NotYetValid,
            Rejected::Revoked,
        ] {
            assert_eq!(
                (rejected.status(), rejected.www_authenticate("api").as_str()),
                (401, challenge)
            );
        }
        assert_eq!(Rejected::Expired.code(), Some("invalid_token"));
        assert_eq!(Rejected::Expired.description(), "The access token expired");
    }

    #[test]
    fn insufficient_scope_challenge_names_scopes() {
        let rejected = Rejected::Scope {
            needed: "orders:read orders:write".into(),
        };
        assert_eq!(rejected.status(), 403);
        assert!(
            rejected
                .www_authenticate("api")
                .ends_with(r#", scope="orders:read orders:write""#)
        );
    }

    #[test]
    fn step_up_challenge_names_acceptable_authentication() {
        let challenge = |acr_values: &str, max_age| {
            let rejected = Rejected::StepUp {
                acr_values: acr_values.into(),
                max_age,
            };
            assert_eq!(rejected.status(), 401);
            rejected.www_authenticate("api")
        };
        let start = r#"Bearer realm="api", error="insufficient_user_authentication", error_description="The user must authenticate in another way, or again""#;
        assert_eq!(
            challenge("2 3", Some(300)),
            format!(r#"{start}, acr_values="2 3", max_age="300""#)
        );
        assert_eq!(challenge("", Some(0)), format!(r#"{start}, max_age="0""#));
        assert_eq!(challenge("2", None), format!(r#"{start}, acr_values="2""#));
    }

    #[test]
    fn realm_cannot_escape_quoted_string() {
        assert_eq!(
            Rejected::Missing.www_authenticate("a\"\\\r\nSet-Cookie: ü"),
            r#"Bearer realm="aSet-Cookie: ""#
        );
    }

    #[test]
    fn invalid_requests_are_400_and_server_faults_503() {
        assert_eq!(
            (Rejected::Request.status(), Rejected::Request.code()),
            (400, Some("invalid_request"))
        );
        assert_eq!(
            (Rejected::Unavailable.status(), Rejected::Unavailable.code()),
            (503, None)
        );
        assert_eq!(
            (Rejected::Stale.status(), Rejected::Stale.code()),
            (503, None)
        );
        assert_eq!(Rejected::Stale.retry_after_secs(), Some(2));
        assert_eq!(Rejected::Revoked.retry_after_secs(), None);
    }

    #[test]
    fn reasons_are_listed_for_metrics() {
        for rejected in [
            Rejected::Claims("exp"),
            Rejected::Stale,
            Rejected::Unavailable,
            Rejected::NotYetValid,
            Rejected::Missing,
        ] {
            assert!(Rejected::REASONS.contains(&rejected.reason()));
        }
    }
}
