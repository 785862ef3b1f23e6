//! RFC 6750 §3: why a token was refused, and how to say so.

/// Why a token was refused: the first check that failed.
///
/// The variant and its text are for logs. What a caller may be told is [`status`](Self::status),
/// [`code`](Self::code), [`description`](Self::description) and
/// [`www_authenticate`](Self::www_authenticate).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejected {
    /// There is no token.
    #[error("no token")]
    Missing,
    /// The request itself is wrong: two `Authorization` headers, or one that cannot be read.
    #[error("the Authorization header is wrong")]
    Request,
    /// Over 16 KiB.
    #[error("the token is too large")]
    TooLarge,
    /// Not three parts of strict base64url with JSON inside, or with a critical header parameter.
    #[error("not a well-formed JWT")]
    Malformed,
    /// `alg` is not allowed here, or is not the key's own.
    #[error("the algorithm is not allowed")]
    Algorithm,
    /// `typ` is not that of an access token.
    #[error("not an access token")]
    Type,
    /// No key has this `kid`.
    #[error("the key is not known")]
    UnknownKey,
    /// The signature is not the key's.
    #[error("the signature is wrong")]
    Signature,
    /// A claim is missing, appears twice or has the wrong type; its name, as far as it can be told.
    #[error("the claims are wrong: {0}")]
    Claims(&'static str),
    /// From another issuer.
    #[error("from another issuer")]
    Issuer,
    /// For another audience.
    #[error("for another audience")]
    Audience,
    /// Over.
    #[error("expired")]
    Expired,
    /// `nbf` or `iat` lies in the future.
    #[error("not yet valid")]
    NotYetValid,
    /// The token is good, and was not granted what the request needs.
    #[error("not granted: {needed}")]
    Scope {
        /// All that the request needs, with spaces between.
        needed: String,
    },
    /// The token is good, and its user has to authenticate in another way, or anew (RFC 9470).
    #[error("another login is needed")]
    StepUp {
        /// The authentication context classes that would do, with spaces between; empty for any.
        acr_values: String,
        /// How many seconds ago the login may be at most.
        max_age: Option<u64>,
    },
    /// The issuer revoked the token, or what it hangs on.
    #[error("revoked")]
    Revoked,
    /// The news of revocations is older than the request allows, so nobody can say whether the
    /// token stands.
    #[error("the revocation feed is too old")]
    Stale,
    /// No keys to check with: no fetch has succeeded for a day.
    #[error("no keys to verify with")]
    Unavailable,
}

impl Rejected {
    /// The HTTP status of the answer.
    pub fn status(&self) -> u16 {
        match self {
            Self::Request => 400,
            Self::Scope { .. } => 403,
            Self::Unavailable | Self::Stale => 503,
            _ => 401,
        }
    }

    /// The error code of RFC 6750 §3.1, or of RFC 9470 §3. None where no token came (§3: such an answer carries no
    /// code), and none where the fault is ours.
    pub fn code(&self) -> Option<&'static str> {
        match self {
            Self::Missing | Self::Unavailable | Self::Stale => None,
            Self::Request => Some("invalid_request"),
            Self::Scope { .. } => Some("insufficient_scope"),
            Self::StepUp { .. } => Some("insufficient_user_authentication"),
            _ => Some("invalid_token"),
        }
    }

    /// After how many seconds to try again (RFC 9110 §10.2.3), where the status is 503.
    pub fn retry_after_secs(&self) -> Option<u64> {
        (self.status() == 503).then_some(2)
    }

    /// The body of the answer, JSON as at a token endpoint (RFC 6749 §5.2). Empty where no token
    /// came: who brings none is told no error (RFC 6750 §3.1).
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

    /// The variant in one word, for logs and metrics.
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

    /// One fixed sentence per kind of answer. Of an invalid token it says no more than whether it
    /// expired: the rest would help only those who forge.
    pub fn description(&self) -> &'static str {
        match self {
            Self::Missing => "An access token is required",
            Self::Request => "The Authorization header is malformed",
            Self::Expired => "The access token expired",
            Self::Scope { .. } => "The access token lacks a scope that this request needs",
            Self::StepUp { .. } => "The user must authenticate in another way, or anew",
            Self::Unavailable | Self::Stale => "Access tokens cannot be verified at the moment",
            _ => "The access token is invalid",
        }
    }

    /// The value of the `WWW-Authenticate` header (RFC 6750 §3, RFC 9470 §3); send it with every status but
    /// 503. `realm` names what is protected, such as the API or its issuer.
    pub fn www_authenticate(&self, realm: &str) -> String {
        let mut challenge = format!("Bearer realm={}", quoted(realm));
        if let Some(code) = self.code() {
            challenge += &format!(
                r#", error="{code}", error_description="{}""#,
                self.description()
            );
        }
        match self {
            // Without a word there is nothing to ask for.
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

/// RFC 9110 §5.6.4, kept to visible ASCII: what cannot stand in a quoted string is left out.
fn quoted(text: &str) -> String {
    let kept = text
        .chars()
        .filter(|c| matches!(c, ' '..='~') && !matches!(c, '"' | '\\'));
    format!("\"{}\"", kept.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_token_is_challenged_without_an_error() {
        assert_eq!(Rejected::Missing.status(), 401);
        assert_eq!(
            Rejected::Missing.www_authenticate("api"),
            r#"Bearer realm="api""#
        );
    }

    #[test]
    fn an_invalid_token_is_not_told_why() {
        let answer = r#"Bearer realm="api", error="invalid_token", error_description="The access token is invalid""#;
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
                (401, answer)
            );
        }
        assert_eq!(Rejected::Expired.code(), Some("invalid_token"));
        assert_eq!(Rejected::Expired.description(), "The access token expired");
    }

    #[test]
    fn a_missing_scope_is_named() {
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
    fn a_step_up_says_what_would_do() {
        let challenge = |acr_values: &str, max_age| {
            let rejected = Rejected::StepUp {
                acr_values: acr_values.into(),
                max_age,
            };
            assert_eq!(rejected.status(), 401);
            rejected.www_authenticate("api")
        };
        let start = r#"Bearer realm="api", error="insufficient_user_authentication", error_description="The user must authenticate in another way, or anew""#;
        assert_eq!(
            challenge("2 3", Some(300)),
            format!(r#"{start}, acr_values="2 3", max_age="300""#)
        );
        assert_eq!(challenge("", Some(0)), format!(r#"{start}, max_age="0""#));
        assert_eq!(challenge("2", None), format!(r#"{start}, acr_values="2""#));
    }

    #[test]
    fn nothing_breaks_out_of_a_quoted_string() {
        assert_eq!(
            Rejected::Missing.www_authenticate("a\"\\\r\nSet-Cookie: ü"),
            r#"Bearer realm="aSet-Cookie: ""#
        );
    }

    #[test]
    fn other_statuses() {
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
    fn every_reason_is_counted() {
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
