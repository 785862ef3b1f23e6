//! Section `limits`, and the policy's constants: numbers that no key changes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ConfigError, HumanDuration};

/// How many requests a minute are answered. A whole minute's budget may be spent at once.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Of one address, on each class of routes. Default 300.
    pub per_ip: u32,
    /// Of one authenticated client on `/oauth2/token`, `/oauth2/par` and `/oauth2/revoke` together.
    /// Default 600.
    pub per_client: u32,
    /// Of one resource server on `/oauth2/introspect`. Default 6000.
    pub introspect: u32,
    /// `enforce` (default), or `count`: what is beyond a limit is logged and answered all the same.
    pub mode: Mode,
}

/// `limits.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// 429 beyond the limit.
    Enforce,
    /// Only a log line.
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
    /// The rates with their keys.
    fn rates(&self) -> [(&'static str, u32); 3] {
        [
            ("limits.per_ip", self.per_ip),
            ("limits.per_client", self.per_client),
            ("limits.introspect", self.introspect),
        ]
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        // GCRA counts in nanoseconds: beyond this a request would weigh less than one.
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

    /// What is looser than the default, as `key=value`, to be shown at start.
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

/// Refreshes of one grant, a minute.
pub const REFRESHES_PER_MINUTE: u32 = 30;
/// Addresses and clients that one kind of rate is counted for, at most; beyond it those with the most
/// left are forgotten.
pub const COUNTED_KEYS: usize = 131_072;
/// How long a throttle stays after its last failure.
pub const THROTTLE_KEPT: Duration = Duration::from_secs(86_400);
/// The same for one that counts a long series.
pub const THROTTLE_KEPT_LONG: Duration = Duration::from_secs(30 * 86_400);
/// How long after its admission the outcome of a sign-in attempt may be open. A request is given up
/// sooner ([`HANDLER_TIME`]), so beyond this its node has stopped and the attempt counts as a failure.
pub const ATTEMPT_IN_PROGRESS: Duration = Duration::from_secs(10);
/// How long a browser that signed in is known.
pub const DEVICE_KNOWN: Duration = Duration::from_secs(180 * 86_400);
/// Authorizations on their way, in all.
pub const OPEN_AUTHORIZATIONS: i64 = 100_000;
/// How long an expired authorization is kept, so that its page can restart the request.
pub const AUTHORIZATION_KEPT: Duration = Duration::from_secs(3_600);
/// Authorizations on their way that began at one address.
pub const OPEN_AUTHORIZATIONS_PER_IP: i64 = 1_000;
/// Connections of one address.
pub const CONNECTIONS_PER_IP: usize = 256;
/// Connections of a node.
pub const CONNECTIONS: usize = 10_000;
/// How often a worker's thread for blocking work is given something to do; it ends after ten idle seconds.
pub const THREAD_KEPT: Duration = Duration::from_secs(4);
/// Open TLS handshakes of one address.
pub const HANDSHAKES_PER_IP: usize = 100;
/// Open TLS handshakes of a node. At the limit the oldest is closed in favour of a new one.
pub const HANDSHAKES: usize = 1_000;
/// How long a TLS handshake may take.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(5);
/// How often the files of a certificate are looked at.
pub const CERTIFICATE_LOOK: Duration = Duration::from_secs(2);
/// How long before a certificate expires operators are told.
pub const CERTIFICATE_ALARM: Duration = Duration::from_secs(14 * 86_400);
/// How long the headers of a request may take.
pub const HEADER_TIME: Duration = Duration::from_secs(5);
/// How long a connection is kept for its next request.
pub const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// How long the body of a request may take.
pub const BODY_TIME: Duration = Duration::from_secs(10);
/// How long a request may be worked on.
pub const HANDLER_TIME: Duration = Duration::from_secs(5);
/// How long readiness waits for the database: a probe is to answer within three seconds.
pub const READY_TIME: Duration = Duration::from_secs(2);

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
/// Longest client id, in characters.
pub const CLIENT_ID_CHARS: usize = 128;
/// Longest client name, in characters.
pub const CLIENT_NAME_CHARS: usize = 64;
/// Longest field in a log line, in characters.
pub const LOG_FIELD_CHARS: usize = 256;
/// Logins that one person may have at once; the oldest ends.
pub const SESSIONS_PER_USER: i64 = 50;
/// Families of refresh tokens that one client may have of one person; the oldest ends.
pub const FAMILIES: i64 = 20;
/// Logins that may wait for a password hash.
pub const HASH_QUEUE: usize = 64;
/// How long a login waits for its turn to hash.
pub const HASH_WAIT: Duration = Duration::from_secs(2);
/// How long a request waits for a database connection.
pub const POOL_WAIT: Duration = Duration::from_millis(500);
/// How long a server that starts waits for its database.
pub const DATABASE_WAIT: Duration = Duration::from_secs(30);
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
/// Longest text about a scope on the consent page, in characters.
pub const DESCRIPTION_CHARS: usize = 256;
/// Longest e-mail address, in characters (RFC 5321 §4.5.3.1.3).
pub const EMAIL_CHARS: usize = 254;
/// Longest user name, in characters.
pub const USERNAME_CHARS: usize = 254;
/// A resource server's own access-token lifetime may go up to this.
pub const RESOURCE_ACCESS_CAP: Duration = Duration::from_secs(3_600);
/// A: the longest life of anything that a signing key signs, which is the highest cap of all.
pub const LONGEST_SIGNED: Duration = Duration::from_secs(3_600);
/// S: how far clocks may be apart.
pub const CLOCK_SKEW: Duration = Duration::from_secs(60);
/// P: the time in which every node sees a change of keys.
pub const KEY_CHANGE_SEEN: Duration = Duration::from_secs(5);
/// How long a private half is kept after its key signed last.
pub const PRIVATE_HALF_KEPT: Duration = Duration::from_secs(3_600);
/// How often each node looks after its rings.
pub const KEEP_EVERY: Duration = Duration::from_secs(60);
/// How often each node asks what has changed.
pub const POLL_EVERY: Duration = Duration::from_millis(50);
/// How long the database may take to say what has changed, before it counts as lost. Its own time limit
/// for a statement is shorter; a network that swallows packets has none.
pub const POLL_TIME: Duration = Duration::from_secs(5);
/// How often each node proves that it can write to the database.
pub const WRITE_EVERY: Duration = Duration::from_secs(2);
/// Age of the last own write beyond which a node is not ready.
pub const WRITE_AGE: Duration = Duration::from_secs(10);
/// How long a node publishes keys after the last good poll: verifiers keep none for longer either.
pub const KEYS_PUBLISHED: Duration = Duration::from_secs(86_400);
/// How long a node may sign tokens after the last good poll and the last own write.
pub const KEY_LEASE: Duration = Duration::from_secs(30);
/// How long a request waits for a lease that ran out, as after a pause of the whole machine.
pub const LEASE_WAIT: Duration = Duration::from_millis(500);
/// The oldest view of the keys before the table is read again.
pub const KEY_VIEW_AGE: Duration = Duration::from_secs(60);
/// A clock that is off by more is worth a warning.
pub const CLOCK_OFF_WARNS: Duration = Duration::from_secs(5);
/// A clock that is off by more stops this node from issuing.
pub const CLOCK_OFF_STOPS: Duration = Duration::from_secs(60);
/// How long the clocks must agree again before the node is ready, so that readiness does not flap.
pub const CLOCK_READY_AFTER: Duration = Duration::from_secs(5);
/// How far the database's clock may be behind what it once wrote.
pub const DATABASE_BEHIND: Duration = Duration::from_secs(300);
/// How long clocks must agree again before this node changes or removes anything.
pub const CLOCKS_AGREE_FOR: Duration = Duration::from_secs(3_600);
/// How long an old server secret still checks what may have begun without knowing its successor.
pub const SECRET_CHANGE_SEEN: Duration = Duration::from_secs(60);
/// How long a form may lie before it is sent: the cap of `login.authorization`.
pub const LONGEST_FORM: Duration = Duration::from_secs(1_800);
/// How often a node says to subscribers how far it is.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);
/// The beat is moved when it is as old, so that silence and a stuck sequencer look different.
pub const BEAT_AGE: Duration = Duration::from_secs(1);
/// Records that one sequencer round numbers, at most.
pub const NUMBERED_AT_ONCE: i64 = 1_000;
/// How long the longest life of access tokens counts after the last need of it.
pub const LIFE_NEEDED_FOR: Duration = Duration::from_secs(7_200);
/// How long a request for frames may wait for news, at most.
pub const LONGEST_POLL: Duration = Duration::from_secs(20);
/// Event streams of one subscriber.
pub const STREAMS_PER_CLIENT: usize = 16;
/// Event streams of a node.
pub const STREAMS: usize = 10_000;
/// How long an event stream lasts, more or less a tenth.
pub const STREAM_LIFE: Duration = Duration::from_secs(3_600);
/// Sent frames that are kept for streams which are a little behind, in bytes.
pub const RECENT_BYTES: usize = 256 * 1024;
/// How long an answer may wait until its reader takes [`TAKEN_BYTES`] of it, before the connection is cut.
pub const UNREAD_TIME: Duration = Duration::from_secs(10);
/// How much a slow reader must take in that time, in bytes.
pub const TAKEN_BYTES: usize = 16 * 1024;
/// Longest name of an instance of a subscriber, in bytes.
pub const INSTANCE_BYTES: usize = 128;
/// Instances of one subscriber that are known at once.
pub const INSTANCES: usize = 1_000;
/// Signing keys that one acknowledgement names, at most.
pub const ACK_KIDS: usize = 64;
/// How long an instance that is silent stays in the list.
pub const ACK_KEPT: Duration = Duration::from_secs(86_400);
/// An instance that was heard within this is connected.
pub const ACK_CONNECTED: Duration = Duration::from_secs(300);
/// A revoked signing key stays on the blocklist for this long.
pub const KEY_RECORD_KEPT: Duration = Duration::from_secs(400 * 86_400);
/// A JWKS lives this long in caches that do as they are told: `max-age` and `stale-if-error`.
pub const JWKS_CACHED: Duration = Duration::from_secs(300 + 86_400);
/// Largest JWKS document, in bytes.
pub const JWKS_BYTES: usize = 16 * 1024;

/// Refuses the first value that is zero or past its cap, with its key.
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
