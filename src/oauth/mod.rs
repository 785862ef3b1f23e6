//! The protocol: OAuth 2.0 and OpenID Connect, without HTTP and SQL.
//!
//! | Chapter | File |
//! |---|---|
//! | RFC 6749 §3.1, §3.2, App. B | [`request::params`] |
//! | RFC 6749 §3.3 | [`request::scope`] |
//! | RFC 6749 §2, RFC 7591 §2 | [`client`] |
//! | RFC 6749 §2.3 | [`client_auth`] |
//! | RFC 6749 §1.3, RFC 7591 §2 | [`grant`] |
//! | RFC 6749 §3.1.2, RFC 8252 §7 | [`redirect_uri`] |
//! | RFC 6749 §4.1.1, OIDC Core §3.1.2 | [`request::authorize`] |
//! | OIDC Core §3.1.2.3 | [`request::next_action`] |
//! | OIDC Core §5.5, essential `acr` only | [`request::claims_request`] |
//! | RFC 6749 §4.1.2, RFC 9207 | [`request::callback`] |
//! | RFC 7636 | [`pkce`] |
//! | RFC 8707 | [`resource`] |
//! | RFC 6749 §3.2 | [`token`] |
//! | RFC 6749 §4.1.2 | [`code`] |
//! | RFC 6749 §4.1.3 | [`grants::authorization_code`] |
//! | RFC 6749 §6, RFC 9700 §4.14 | [`grants::refresh_token`] |
//! | RFC 6749 §4.4 | [`grants::client_credentials`] |
//! | RFC 7009 | [`revocation`] |
//! | RFC 7662 | [`introspection`] |
//! | OIDC Core §5.3 | [`userinfo`] |
//! | RFC 9068 | [`issue`] |
//! | OIDC Core §2 | [`issue::id_token`] |
//! | RFC 8414, OIDC Discovery | [`discovery`] |
//! | RFC 6749 §4.1.2.1, §5.2 | [`error`] |

pub mod client;
pub mod client_auth;
pub mod code;
pub mod discovery;
pub mod error;
pub mod grant;
pub mod grants;
pub mod introspection;
pub mod issue;
pub mod ledger;
pub mod logout;
pub(crate) mod macros;
pub mod pkce;
pub mod redirect_uri;
pub mod request;
pub mod resource;
pub mod revocation;
pub mod token;
pub mod userinfo;

pub use error::{Cause, Code, Compared, Description, Detail, Error, Severity};
pub use ledger::{Ledger, Outcome, StorageError};
