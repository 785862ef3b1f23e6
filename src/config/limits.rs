//! Section `limits`, and the constants of the policy, which no key changes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ConfigError, HumanDuration};

/// Request rates per minute. A burst may use the budget of a whole minute.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Per address and class of routes. Default 300.
    pub per_ip: u32,
    /// Per authenticated client, on `/oauth2/token`, `/oauth2/par` and `/oauth2/revoke` together.
    /// Default 600.
    pub per_client: u32,
    /// Per resource server, on `/oauth2/introspect`. Default 6000.
    pub introspect: u32,
    /// `enforce` (default), or `count`: requests beyond a limit are logged and served.
    pub mode: Mode,
}

/// `limits.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Requests beyond a limit get 429.
    Enforce,
    /// Requests beyond a limit are logged and served.
    Count,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            per_ip: 300,
            per_client: 600,
            introspect: 6_000,
            mode: Mode::Enforce,
        }
    }
}

impl Limits {
    fn rates(&self) -> [(&'static str, u32); 3] {
        [
            ("limits.per_ip", self.per_ip),
            ("limits.per_client", self.per_client),
            ("limits.introspect", self.introspect),
        ]
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        // GCRA counts in nanoseconds. Beyond this rate, a request would cost less than one.
        match self
            .rates()
            .into_iter()
            .find(|(_, rate)| !(1..=1_000_000_000).contains(rate))
        {
            Some((key, _)) => Err(ConfigError::key(
                key,
                "must be 1 to 1000000000 requests a minute",
            )),
            None => Ok(()),
        }
    }

    /// Returns the limits that are looser than the default, as `key=value`.
    pub fn loosened(&self) -> Vec<String> {
        let defaults = Self::default().rates();
        let mut loose: Vec<String> = self
            .rates()
            .into_iter()
            .zip(defaults)
            .filter(|((_, rate), (_, default))| rate > default)
            .map(|((key, rate), _)| format!("{key}={rate}"))
            .collect();
        if self.mode == Mode::Count {
            loose.push("limits.mode=count".to_owned());
        }
        loose
    }
}

/// Maximum refreshes of one grant per minute.
pub const REFRESHES_PER_MINUTE: u32 = 30;
/// Maximum number of addresses or clients that one kind of rate is counted for. Beyond it, those with the
/// most budget left are removed.
pub const COUNTED_KEYS: usize = 131_072;
/// Time that a throttle is kept after its last failure.
pub const THROTTLE_KEPT: Duration = Duration::from_secs(86_400);
/// Time that a throttle is kept after its last failure if it counts a long series.
pub const THROTTLE_KEPT_LONG: Duration = Duration::from_secs(30 * 86_400);
/// Time after which a sign-in attempt without an outcome counts as a failure. A request is aborted earlier
/// ([`HANDLER_TIME`]), so its node must have stopped.
pub const ATTEMPT_IN_PROGRESS: Duration = Duration::from_secs(10);
/// Time that a browser is remembered after a sign-in.
pub const DEVICE_KNOWN: Duration = Duration::from_secs(180 * 86_400);
/// Maximum number of pending authorizations.
pub const OPEN_AUTHORIZATIONS: i64 = 100_000;
/// Time that an expired authorization is kept, so that its page can restart the request.
pub const AUTHORIZATION_KEPT: Duration = Duration::from_secs(3_600);
/// Maximum number of pending authorizations that were started from one address.
pub const OPEN_AUTHORIZATIONS_PER_IP: i64 = 1_000;
/// Maximum number of connections from one address.
pub const CONNECTIONS_PER_IP: usize = 256;
/// Maximum number of connections of a node.
pub const CONNECTIONS: usize = 10_000;
/// Interval at which a worker's thread for blocking work gets a task, because it ends after ten idle seconds.
pub const THREAD_KEPT: Duration = Duration::from_secs(4);
/// Maximum number of open TLS handshakes from one address.
pub const HANDSHAKES_PER_IP: usize = 100;
/// Maximum number of open TLS handshakes of a node. Beyond it, the oldest is closed.
pub const HANDSHAKES: usize = 1_000;
/// Maximum time of a TLS handshake.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(5);
/// Interval at which the files of a certificate are checked for changes.
pub const CERTIFICATE_LOOK: Duration = Duration::from_secs(2);
/// Time before the expiry of a certificate from which operators are alerted.
pub const CERTIFICATE_ALERT: Duration = Duration::from_secs(14 * 86_400);
/// Maximum time to receive the head of a request.
pub const HEADER_TIME: Duration = Duration::from_secs(5);
/// Time that a connection is kept open after a response. Longer than the pools of common clients and proxies keep
/// one, because many of them do not repeat a POST whose connection was closed.
pub const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// Maximum time to receive the body of a request.
pub const BODY_TIME: Duration = Duration::from_secs(10);
/// Maximum time to process a request.
pub const HANDLER_TIME: Duration = Duration::from_secs(5);
/// Maximum time that readiness waits for the database. A probe must respond within three seconds.
pub const READY_TIME: Duration = Duration::from_secs(2);

/// Records in a frame of the feed. With them a frame has less than 48 KiB, so a client can read it with a line reader
/// of 64 KiB. Verifiers accept larger ones.
pub const FRAME_RECORDS: usize = 1_024;
/// Frames in a response of the feed.
pub const FRAMES_AT_ONCE: usize = 16;

/// Maximum length of the request target, in bytes. Beyond it, the status is 414.
pub const URL_BYTES: usize = 8 * 1024;
/// Maximum size of the header fields, in bytes. Beyond it, the status is 431.
pub const HEADER_BYTES: usize = 32 * 1024;
/// Maximum number of header fields. Beyond it, the status is 431.
pub const HEADER_FIELDS: usize = 100;
/// Maximum size of the request body, in bytes. Beyond it, the status is 413.
pub const BODY_BYTES: usize = 16 * 1024;
/// Maximum number of fields in a query or form. Beyond it, the status is 400.
pub const FIELDS: usize = 64;
/// Maximum length of a redirect URI, in bytes.
pub const REDIRECT_URI_BYTES: usize = 2_048;
/// Maximum number of redirect URIs of one client.
pub const REDIRECT_URIS: usize = 20;
/// Maximum length of `state`, in characters.
pub const STATE_CHARS: usize = 2_048;
/// Maximum length of `nonce`, in characters.
pub const NONCE_CHARS: usize = 512;
/// Maximum length of `scope`, in bytes.
pub const SCOPE_BYTES: usize = 1_024;
/// Maximum number of scope tokens.
pub const SCOPE_ITEMS: usize = 32;
/// Maximum number of `resource` values.
pub const RESOURCES: usize = 8;
/// Maximum length of a displayed `login_hint`, in characters.
pub const LOGIN_HINT_CHARS: usize = 254;
/// Maximum nesting depth of JSON.
pub const JSON_DEPTH: usize = 8;
/// Maximum length of a client id, in characters.
pub const CLIENT_ID_CHARS: usize = 128;
/// Maximum length of a client name, in characters.
pub const CLIENT_NAME_CHARS: usize = 64;
/// Maximum number of sessions of one user. Beyond it, the oldest is revoked.
pub const SESSIONS_PER_USER: i64 = 50;
/// Maximum number of refresh token families that one client has for one user. Beyond it, the oldest is
/// revoked.
pub const FAMILIES: i64 = 20;
/// Maximum number of sign-ins that wait for a password hash.
pub const HASH_QUEUE: usize = 64;
/// Maximum time that a sign-in waits for a password hash to start.
pub const HASH_WAIT: Duration = Duration::from_secs(2);
/// Maximum time that a request waits for a database connection.
pub const POOL_WAIT: Duration = Duration::from_millis(500);
/// How many times [`POOL_WAIT`] a request waits for a new connection to open, if none fails to open meanwhile.
pub const OPEN_WAITS: u32 = 4;
/// Maximum number of pages that wait for a database connection. Beyond it, further pages get 503 at once.
pub const WAITING_PAGES: usize = 64;
/// Maximum time that a starting server waits for its database.
pub const DATABASE_WAIT: Duration = Duration::from_secs(30);
/// Maximum time from now until a client assertion expires.
pub const ASSERTION_MAX: Duration = Duration::from_secs(300);
/// Maximum size of a client assertion in bytes.
pub const ASSERTION_BYTES: usize = 8 * 1024;
/// Maximum size of the `jti` of a client assertion in bytes.
pub const JTI_BYTES: usize = 256;
/// Time between two attempts to tell a client that a session has ended. After the last one it is given up.
pub const LOGOUT_RETRIES: [Duration; 3] = [
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(300),
];
/// Maximum time of one such attempt.
pub const LOGOUT_TIME: Duration = Duration::from_secs(3);
/// Interval at which each node looks for due attempts.
pub const LOGOUT_NOTIFICATIONS_EVERY: Duration = Duration::from_secs(5);
/// Time that a notification is kept that was given up.
pub const LOGOUT_NOTIFICATION_KEPT: Duration = Duration::from_secs(7 * 86_400);
/// Time that a used code is kept, so that a replay is detected.
pub const USED_CODE_KEPT: Duration = Duration::from_secs(600);
/// Maximum number of rows of one kind that one clean-up removes.
pub const CLEAN_UP_BATCH: i64 = 1_000;
/// Interval between the clean-ups of a node.
pub const CLEAN_UP_EVERY: Duration = Duration::from_secs(60);
/// Minimum interval between updates of a session's last use.
pub const SESSION_TOUCH: Duration = Duration::from_secs(60);
/// Minimum interval between updates of a client secret's last use.
pub const SECRET_TOUCH: Duration = Duration::from_secs(3600);
/// Maximum time that an old client secret stays valid beside a new one.
pub const SECRET_OVERLAP_CAP: Duration = Duration::from_secs(7 * 86_400);
/// Maximum lifetime of a client secret that has one (10 years).
pub const SECRET_LIFETIME_CAP: Duration = Duration::from_secs(3_650 * 86_400);
/// Maximum age of cached clients and resources.
pub const REGISTRATION_AGE: Duration = Duration::from_secs(5);
/// Maximum number of cached clients of a node.
pub const REGISTRATIONS: usize = 10_000;
/// Minimum length of a password, in characters.
pub const PASSWORD_CHARS: usize = 15;
/// Maximum length of a password, in bytes.
pub const PASSWORD_BYTES: usize = 1_024;
/// Maximum length of the description of a scope, in characters.
pub const DESCRIPTION_CHARS: usize = 256;
/// Maximum length of an e-mail address, in characters (RFC 5321 §4.5.3.1.3).
pub const EMAIL_CHARS: usize = 254;
/// Maximum length of a user name, in characters.
pub const USERNAME_CHARS: usize = 254;
/// Maximum lifetime of access tokens that a resource server may register.
pub const RESOURCE_ACCESS_CAP: Duration = Duration::from_secs(3_600);
/// A: the maximum lifetime of all values that a signing key signs, which is the highest cap of all.
pub const LONGEST_SIGNED: Duration = Duration::from_secs(3_600);
/// S: the maximum difference between clocks.
pub const CLOCK_SKEW: Duration = Duration::from_secs(60);
/// P: the time in which every node reads a change of the keys.
pub const KEY_CHANGE_SEEN: Duration = Duration::from_secs(5);
/// Time that a private key is kept after its last signature.
pub const PRIVATE_HALF_KEPT: Duration = Duration::from_secs(3_600);
/// Interval between the runs of the key manager.
pub const KEEP_EVERY: Duration = Duration::from_secs(60);
/// Interval at which a node polls the database for changes while a service follows its feed.
pub const POLL_EVERY: Duration = Duration::from_millis(50);
/// While no service follows the feed of the node, it polls at one of this many intervals: every 250 ms.
pub const POLLS_UNFOLLOWED: u32 = 5;
/// Maximum time of a poll, after which the connection counts as lost. The database's own statement timeout
/// is shorter, but it does not help if the network drops packets.
pub const POLL_TIME: Duration = Duration::from_secs(5);
/// Interval at which each node writes to the database, to check that it can.
pub const WRITE_EVERY: Duration = Duration::from_secs(2);
/// Age of a node's last write from which it is not ready.
pub const WRITE_AGE: Duration = Duration::from_secs(10);
/// Time that a node publishes keys after its last successful poll. Verifiers keep keys no longer either.
pub const KEYS_PUBLISHED: Duration = Duration::from_secs(86_400);
/// Time that a node may sign tokens after its last successful poll and its last write.
pub const KEY_LEASE: Duration = Duration::from_secs(30);
/// Maximum time that a request waits for the renewal of an expired lease, for example after the whole machine
/// was paused.
pub const LEASE_WAIT: Duration = Duration::from_millis(500);
/// Age of the key view from which the table is read again.
pub const KEY_VIEW_AGE: Duration = Duration::from_secs(60);
/// Clock error from which a warning is logged.
pub const CLOCK_OFF_WARNS: Duration = Duration::from_secs(5);
/// Clock error from which this node stops issuing tokens.
pub const CLOCK_OFF_STOPS: Duration = Duration::from_secs(60);
/// Time that the clocks must agree before the node is ready again, so that readiness does not flap.
pub const CLOCK_READY_AFTER: Duration = Duration::from_secs(5);
/// Maximum time that the database's clock may be behind a timestamp that it wrote.
pub const DATABASE_BEHIND: Duration = Duration::from_secs(300);
/// Time that the clocks must agree before this node changes or removes keys again.
pub const CLOCKS_AGREE_FOR: Duration = Duration::from_secs(3_600);
/// Time that a new server secret must be known before it is used, so that every node can verify it.
pub const SECRET_CHANGE_SEEN: Duration = Duration::from_secs(60);
/// Maximum time between rendering and submitting a form: the cap of `login.authorization`.
pub const LONGEST_FORM: Duration = Duration::from_secs(1_800);
/// Interval between the heartbeats that a node sends to subscribers.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);
/// Age from which the beat is renewed, so that a quiet feed differs from a stuck sequencer.
pub const BEAT_AGE: Duration = Duration::from_secs(1);
/// Maximum number of records that one round of the sequencer numbers.
pub const NUMBERED_AT_ONCE: i64 = 1_000;
/// Time that the maximum lifetime of access tokens stays published after its last use.
pub const LIFE_NEEDED_FOR: Duration = Duration::from_secs(7_200);
/// Maximum time that a request for frames waits for a new frame.
pub const LONGEST_POLL: Duration = Duration::from_secs(20);
/// Maximum number of event streams of one subscriber.
pub const STREAMS_PER_CLIENT: usize = 16;
/// Maximum number of event streams of a node.
pub const STREAMS: usize = 10_000;
/// Duration of an event stream, plus or minus a tenth.
pub const STREAM_LIFE: Duration = Duration::from_secs(3_600);
/// Size of the sent frames that are kept for streams that are slightly behind, in bytes.
pub const RECENT_BYTES: usize = 256 * 1024;
/// Maximum time in which a client must read [`TAKEN_BYTES`] of a response. After that, the connection is
/// closed.
pub const UNREAD_TIME: Duration = Duration::from_secs(10);
/// Number of bytes that a slow client must read within [`UNREAD_TIME`].
pub const TAKEN_BYTES: usize = 16 * 1024;
/// Maximum number of bytes that a client may send between a response and the next request head: the rest of a body
/// that was refused, or pipelined requests.
pub const BETWEEN_BYTES: usize = 256 * 1024;
/// Maximum length of the name of a subscriber's instance, in bytes.
pub const INSTANCE_BYTES: usize = 128;
/// Maximum number of known instances of one subscriber.
pub const INSTANCES: usize = 1_000;
/// Maximum number of signing keys in one acknowledgement.
pub const ACK_KIDS: usize = 64;
/// Time that an instance stays in the list after its last acknowledgement.
pub const ACK_KEPT: Duration = Duration::from_secs(86_400);
/// Maximum age of the last acknowledgement of an instance that counts as connected.
pub const ACK_CONNECTED: Duration = Duration::from_secs(300);
/// Time that a revoked signing key stays on the blocklist.
pub const KEY_RECORD_KEPT: Duration = Duration::from_secs(400 * 86_400);
/// Maximum time that a conforming cache keeps a JWKS: `max-age` and `stale-if-error`.
pub const JWKS_CACHED: Duration = Duration::from_secs(300 + 86_400);
/// Maximum size of a JWKS document, in bytes.
pub const JWKS_BYTES: usize = 16 * 1024;

/// Rejects the first value that is zero or exceeds its cap, with its key.
pub(super) fn caps(values: &[(&str, HumanDuration, HumanDuration)]) -> Result<(), ConfigError> {
    for (key, value, cap) in values {
        if value.0.is_zero() || value > cap {
            return Err(ConfigError::key(
                key,
                format!("{value} is out of range; it must be more than 0s and at most {cap}"),
            ));
        }
    }
    Ok(())
}
