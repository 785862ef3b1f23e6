//! Portcullis: an OAuth 2.0 and OpenID Connect authorization server.
//!
//! Imports go one way: `main → cli → http → app → admin → { feed, keeper } → db → oauth → { accounts, keys } → { log,
//! telemetry } → { audit, config, id, metrics, secret, time } → portcullis-verifier`. `tests/layout.rs` fails the build
//! when one goes back.
//!
//! | Module | What it is |
//! |---|---|
//! | [`cli`] | commands, one file per verb |
//! | [`http`] | endpoints and pages |
//! | [`app`] | everything wired once |
//! | [`admin`] | operations: each change that is not the protocol's, with its audit event |
//! | [`feed`] | the revocation feed: records in memory, signed frames, acknowledgements |
//! | [`keeper`] | standbys, the key view, changes of keys; in every node |
//! | [`db`] | storage on SQLite and Postgres |
//! | [`oauth`] | the protocol, free of HTTP and SQL |
//! | [`accounts`] | people, passwords, sessions, consent |
//! | [`keys`] | signing keys, sealed values |
//! | [`outbound`] | the guarded HTTP client for URLs that others supply |
//! | [`telemetry`] | traces, with the feature `otel` |
//! | [`log`] | the log's lines, and the thread that writes them |
//! | [`audit`] | audit events: actors, targets, names |
//! | [`config`] | configuration and the policy's limits |
//! | [`id`] | identifiers |
//! | [`metrics`] | what is counted, and the page for Prometheus |
//! | [`secret`] | random secrets and their hashes |
//! | [`time`] | instants and the clock |
//!
//! | Document | File |
//! |---|---|
//! | RFC 6749 §2.3 client authentication | `oauth/client_auth.rs` |
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
//! | RFC 9068 JWT access tokens | `oauth/issue.rs` |
//! | OIDC Core §2 ID token | `oauth/id_token.rs` |
//! | OIDC Core §5.3 userinfo | `oauth/userinfo.rs` |
//! | OIDC Core §3.1.2.3 sign-in and consent | `oauth/request/next_action.rs` |
//! | OIDC Core §5.5 claims parameter | `oauth/request/claims_request.rs` |
//! | OIDC RP-Initiated Logout | `oauth/logout.rs` |

#![forbid(unsafe_code)]

pub mod accounts;
pub mod admin;
pub mod app;
pub mod audit;
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
pub mod telemetry;
pub mod time;
