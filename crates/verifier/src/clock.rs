//! The one reader of the system clock; everywhere else an instant comes in as a value.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since the Unix epoch. A clock before the epoch reads as 0, when every token is still to
/// come: wrong, and safe.
#[allow(clippy::disallowed_methods, reason = "the one place")]
pub(crate) fn now_secs() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
