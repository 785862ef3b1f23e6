//! Metadata: RFC 8414 and OpenID Connect Discovery share one document, which has only registered members and
//! lists only supported features.

use serde::Serialize;

use super::client::AuthMethod;
use super::grant::GrantType;
use super::request::scope::IDENTITY;
use super::userinfo;
use crate::accounts::session::ACR_PASSWORD;
use crate::config::Issuer;
use crate::keys::Alg;
use crate::keys::client_key_set::AssertionAlg;

/// The metadata document (RFC 8414 §2).
#[derive(Debug, Serialize)]
#[allow(missing_docs)] // the registered members
pub struct Metadata {
    pub issuer: String,
    pub authorization_endpoint: String,
    pub token_endpoint: String,
    pub jwks_uri: String,
    pub userinfo_endpoint: String,
    pub revocation_endpoint: String,
    pub introspection_endpoint: String,
    pub end_session_endpoint: String,
    pub backchannel_logout_supported: bool,
    pub backchannel_logout_session_supported: bool,
    pub scopes_supported: Vec<&'static str>,
    pub response_types_supported: [&'static str; 1],
    pub response_modes_supported: [&'static str; 2],
    pub grant_types_supported: Vec<&'static str>,
    pub acr_values_supported: [&'static str; 1],
    pub subject_types_supported: [&'static str; 1],
    pub id_token_signing_alg_values_supported: Vec<&'static str>,
    pub userinfo_signing_alg_values_supported: Vec<&'static str>,
    pub token_endpoint_auth_methods_supported: Vec<&'static str>,
    pub token_endpoint_auth_signing_alg_values_supported: Vec<&'static str>,
    pub revocation_endpoint_auth_methods_supported: Vec<&'static str>,
    pub revocation_endpoint_auth_signing_alg_values_supported: Vec<&'static str>,
    pub introspection_endpoint_auth_methods_supported: Vec<&'static str>,
    pub introspection_endpoint_auth_signing_alg_values_supported: Vec<&'static str>,
    pub claims_supported: Vec<&'static str>,
    pub code_challenge_methods_supported: [&'static str; 1],
    pub claims_parameter_supported: bool,
    pub request_parameter_supported: bool,
    pub request_uri_parameter_supported: bool,
    pub authorization_response_iss_parameter_supported: bool,
    pub prompt_values_supported: [&'static str; 4],
}

impl Metadata {
    /// Creates the metadata of an issuer that signs tokens with `algorithms`.
    pub fn of(issuer: &Issuer, algorithms: &[Alg]) -> Self {
        let algorithms: Vec<_> = algorithms.iter().map(|alg| alg.name()).collect();
        Self {
            issuer: issuer.as_str().to_owned(),
            authorization_endpoint: issuer.url("/oauth2/authorize"),
            token_endpoint: issuer.url("/oauth2/token"),
            jwks_uri: issuer.url("/oauth2/jwks"),
            userinfo_endpoint: issuer.url("/oauth2/userinfo"),
            revocation_endpoint: issuer.url("/oauth2/revoke"),
            introspection_endpoint: issuer.url("/oauth2/introspect"),
            end_session_endpoint: issuer.url("/oauth2/end_session"),
            backchannel_logout_supported: true,
            backchannel_logout_session_supported: true,
            scopes_supported: IDENTITY.to_vec(),
            response_types_supported: ["code"],
            response_modes_supported: ["query", "form_post"],
            grant_types_supported: GrantType::ALL.iter().map(|grant| grant.as_str()).collect(),
            acr_values_supported: [ACR_PASSWORD],
            subject_types_supported: ["public"],
            id_token_signing_alg_values_supported: algorithms.clone(),
            userinfo_signing_alg_values_supported: algorithms,
            token_endpoint_auth_methods_supported: methods(&METHODS),
            token_endpoint_auth_signing_alg_values_supported: assertion_algorithms(),
            revocation_endpoint_auth_methods_supported: methods(&METHODS),
            revocation_endpoint_auth_signing_alg_values_supported: assertion_algorithms(),
            introspection_endpoint_auth_methods_supported: methods(&[
                AuthMethod::Basic,
                AuthMethod::Post,
                AuthMethod::PrivateKeyJwt,
            ]),
            introspection_endpoint_auth_signing_alg_values_supported: assertion_algorithms(),
            claims_supported: ID_TOKEN_CLAIMS
                .into_iter()
                .chain(userinfo::claim_names())
                .collect(),
            code_challenge_methods_supported: ["S256"],
            claims_parameter_supported: false,
            request_parameter_supported: false,
            request_uri_parameter_supported: false,
            authorization_response_iss_parameter_supported: true,
            prompt_values_supported: ["none", "login", "consent", "select_account"],
        }
    }
}

/// The claims of ID tokens that clients may rely on.
const ID_TOKEN_CLAIMS: [&str; 10] = [
    "iss",
    "sub",
    "aud",
    "exp",
    "iat",
    "auth_time",
    "nonce",
    "acr",
    "amr",
    "sid",
];

/// The registered names of the methods. A client that may use both ways to send its secret picks one of them.
const METHODS: [AuthMethod; 4] = [
    AuthMethod::Basic,
    AuthMethod::Post,
    AuthMethod::PrivateKeyJwt,
    AuthMethod::None,
];

fn assertion_algorithms() -> Vec<&'static str> {
    AssertionAlg::ALL.iter().map(|alg| alg.name()).collect()
}

fn methods(offered: &[AuthMethod]) -> Vec<&'static str> {
    offered.iter().map(|method| method.as_str()).collect()
}
