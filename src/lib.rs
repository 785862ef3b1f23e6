//! Portcullis: an OAuth 2.0 and OpenID Connect authorization server.
//!
//! Modules import only modules to their right: `main → cli → http → app → { checks, tasks } → admin → { feed, key_manager } → db → oauth →
//! { accounts, keys } → { log, outbound, telemetry } → { audit, config, id, metrics, secret, time } →
//! { portcullis-verifier, portcullis-runtime }`. `tests/layout` checks it.
//!
//! | Module | Contents |
//! |---|---|
//! | [`cli`] | commands, one file per verb |
//! | [`http`] | endpoints and pages |
//! | [`app`] | the state of a node, and its creation |
//! | [`checks`] | checks of the database at start |
//! | [`tasks`] | background tasks of a node |
//! | [`admin`] | administrative operations, each with its audit event |
//! | [`feed`] | the revocation feed: records in memory, signed frames, acknowledgements |
//! | [`key_manager`] | creation, rotation and revocation of keys, and the key view of a node |
//! | [`db`] | storage on SQLite and PostgreSQL |
//! | [`oauth`] | the protocol, without HTTP and SQL |
//! | [`accounts`] | users, passwords, sessions, consent |
//! | [`keys`] | signing keys, encryption of stored values |
//! | [`outbound`] | the guarded HTTP client for URLs of clients and administrators |
//! | [`telemetry`] | traces, with the feature `otel` |
//! | [`log`] | set-up of the log |
//! | [`audit`] | audit events: actors, targets, names |
//! | [`config`] | configuration and the policy's limits |
//! | [`id`] | identifiers |
//! | [`metrics`] | counters, and the page for Prometheus |
//! | [`secret`] | random secrets and their hashes |
//! | [`time`] | timestamps and the clock |
//!
//! | Document | File |
//! |---|---|
//! | RFC 6749 §2.3 client authentication | `oauth/client_auth/mod.rs` |
//! | RFC 6749 §3.1.2 redirection endpoint, RFC 8252 native apps | `oauth/redirect_uri.rs` |
//! | RFC 6749 §3.2 token endpoint | `oauth/token.rs` |
//! | RFC 6749 §3.3 scope | `oauth/request/scope.rs` |
//! | RFC 6749 §4.1.1 authorization request | `oauth/request/authorize.rs` |
//! | RFC 6749 §4.1.2 authorization response, RFC 9207 `iss` | `oauth/request/callback.rs` |
//! | RFC 6749 §4.1.3 authorization code | `oauth/grants/authorization_code.rs` |
//! | RFC 6749 §6 refresh token, RFC 9700 §4.14 | `oauth/grants/refresh_token.rs` |
//! | RFC 6749 §4.4 client credentials | `oauth/grants/client_credentials.rs` |
//! | RFC 6749 §5.2 errors | `oauth/error.rs` |
//! | RFC 7009 revocation | `oauth/revocation.rs` |
//! | RFC 7517 JSON Web Key | `../crates/verifier/src/jwks.rs` |
//! | RFC 7591 §2 client metadata | `oauth/client.rs` |
//! | RFC 7636 PKCE | `oauth/pkce.rs` |
//! | RFC 7662 introspection | `oauth/introspection.rs` |
//! | RFC 8414 metadata | `oauth/discovery.rs` |
//! | RFC 8707 resource indicators | `oauth/resource.rs` |
//! | RFC 9068 JWT access tokens | `oauth/issue/access_token.rs` |
//! | OIDC Core §2 ID token | `oauth/issue/id_token.rs` |
//! | OIDC Core §5.3 userinfo | `oauth/userinfo.rs` |
//! | OIDC Core §3.1.2.3 sign-in and consent | `oauth/request/next_action.rs` |
//! | OIDC Core §5.5 claims parameter, essential `acr` only | `oauth/request/claims_request.rs` |
//! | OIDC RP-Initiated Logout | `oauth/logout.rs` |
//! | OIDC Back-Channel Logout | `tasks/logout_notifications.rs` |
//! | RFC 7523 client assertions | `oauth/client_auth/private_key_jwt.rs` |

#![forbid(unsafe_code)]

pub mod accounts;
pub mod admin;
pub mod app;
pub mod audit;
pub mod checks;
pub mod cli;
pub mod config;
pub mod db;
pub mod feed;
pub mod http;
pub mod id;
pub mod key_manager;
pub mod keys;
pub mod log;
pub mod metrics;
pub mod oauth;
pub mod outbound;
pub mod secret;
pub mod tasks;
pub mod telemetry;
pub mod time;
