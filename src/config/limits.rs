//! The policy's constants: numbers that no key changes.

use std::time::Duration;

use super::{Refused, Span};

/// Longest request target, in bytes; beyond it 414.
pub const URL_BYTES: usize = 8 * 1024;
/// Longest header block, in bytes; beyond it 431.
pub const HEADER_BYTES: usize = 32 * 1024;
/// Most header fields; beyond it 431.
pub const HEADER_FIELDS: usize = 100;
/// Longest request body, in bytes; beyond it 413.
pub const BODY_BYTES: usize = 16 * 1024;
/// Most fields in a query or form; beyond it 400.
pub const FIELDS: usize = 64;
/// Longest redirect URI, in bytes.
pub const REDIRECT_URI_BYTES: usize = 2_048;
/// Most redirect URIs of one client.
pub const REDIRECT_URIS: usize = 20;
/// Longest `state`, in characters.
pub const STATE_CHARS: usize = 2_048;
/// Longest `nonce`, in characters.
pub const NONCE_CHARS: usize = 512;
/// Longest `scope`, in bytes.
pub const SCOPE_BYTES: usize = 1_024;
/// Most scope tokens.
pub const SCOPE_ITEMS: usize = 32;
/// Most `resource` values.
pub const RESOURCES: usize = 8;
/// Longest `login_hint` that is shown, in characters.
pub const LOGIN_HINT_CHARS: usize = 254;
/// Deepest JSON that is read.
pub const JSON_DEPTH: usize = 8;
/// Longest client name, in characters.
pub const CLIENT_NAME_CHARS: usize = 64;
/// Longest field in a log line, in characters.
pub const LOG_FIELD_CHARS: usize = 256;
/// Logins that may wait for a password hash.
pub const HASH_QUEUE: usize = 64;
/// How long a login waits for its turn to hash.
pub const HASH_WAIT: Duration = Duration::from_secs(2);
/// How long a request waits for a database connection.
pub const POOL_WAIT: Duration = Duration::from_millis(500);
/// How long a used code stays, so that its replay is seen.
pub const USED_CODE_KEPT: Duration = Duration::from_secs(600);
/// Rows of a kind that one clean-up removes, at most.
pub const CLEAN_UP_BATCH: i64 = 1_000;
/// How often each node cleans up.
pub const CLEAN_UP_EVERY: Duration = Duration::from_secs(60);
/// How often, at most, a session's last use is written down.
pub const SESSION_TOUCH: Duration = Duration::from_secs(60);
/// How often, at most, a client secret's last use is written down.
pub const SECRET_TOUCH: Duration = Duration::from_secs(3600);
/// How long, at most, an old client secret goes on beside a new one.
pub const SECRET_OVERLAP_CAP: Duration = Duration::from_secs(7 * 86_400);
/// How old what a node remembers of clients and resources may be.
pub const REGISTRATION_AGE: Duration = Duration::from_secs(5);
/// How many clients a node remembers.
pub const REGISTRATIONS: usize = 10_000;
/// Shortest password, in characters.
pub const PASSWORD_CHARS: usize = 15;
/// Longest password, in bytes.
pub const PASSWORD_BYTES: usize = 1_024;
/// Longest user name, in characters.
pub const USERNAME_CHARS: usize = 254;
/// A resource server's own access-token lifetime may go up to this.
pub const RESOURCE_ACCESS_CAP: Duration = Duration::from_secs(3_600);

/// Refuses the first value that is zero or past its cap, with its key.
pub(super) fn caps(values: &[(&str, Span, Span)]) -> Result<(), Refused> {
    for (key, value, cap) in values {
        if value.0.is_zero() || value > cap {
            return Err(Refused::key(
                key,
                format!("{value} is out of range; it must be more than 0s and at most {cap}"),
            ));
        }
    }
    Ok(())
}
