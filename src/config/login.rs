//! Section `login`: sign-in, sessions, consent, password hashing.

use serde::{Deserialize, Serialize};

use super::limits::caps;
use super::{ConfigError, HumanDuration};

/// Sign-in and sessions.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Login {
    /// Maximum time of sign-in and consent for one authorization request. Default 10m, at most 30m.
    pub authorization: HumanDuration,
    /// Idle lifetime of a session. Default 30m, at most 24h.
    pub session_idle: HumanDuration,
    /// Absolute lifetime of a session. Default 12h, at most 30d.
    pub session_absolute: HumanDuration,
    /// Time after which the user is asked for consent again. Default 180d, at most 400d.
    pub consent_max_age: HumanDuration,
    /// Number of passwords that are hashed concurrently. Default: the number of cores, at most 4.
    pub hash_threads: Option<usize>,
    /// Cost of a password hash.
    pub argon2: Argon2,
}

/// `login.argon2`: Argon2id parameters. Each default is also the minimum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Argon2 {
    /// Memory in KiB. Default and minimum 19456, at most 65536.
    pub memory_kib: u32,
    /// Passes. Default and minimum 2.
    pub passes: u32,
    /// Lanes. Default and minimum 1.
    pub lanes: u32,
}

impl Argon2 {
    /// Maximum of `memory_kib`.
    pub const MOST_MEMORY_KIB: u32 = 65_536;
    /// Maximum of `passes`.
    pub const MOST_PASSES: u32 = 16;
    /// Maximum of `lanes`.
    pub const MOST_LANES: u32 = 4;
}

impl Default for Argon2 {
    fn default() -> Self {
        Self {
            memory_kib: 19_456,
            passes: 2,
            lanes: 1,
        }
    }
}

impl Default for Login {
    fn default() -> Self {
        Self {
            authorization: HumanDuration::secs(600),
            session_idle: HumanDuration::secs(30 * 60),
            session_absolute: HumanDuration::secs(12 * 3_600),
            consent_max_age: HumanDuration::secs(180 * 86_400),
            hash_threads: None,
            argon2: Argon2::default(),
        }
    }
}

impl Login {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        caps(&[
            (
                "login.authorization",
                self.authorization,
                HumanDuration::secs(1_800),
            ),
            (
                "login.session_idle",
                self.session_idle,
                HumanDuration::secs(86_400),
            ),
            (
                "login.session_absolute",
                self.session_absolute,
                HumanDuration::secs(30 * 86_400),
            ),
            (
                "login.consent_max_age",
                self.consent_max_age,
                HumanDuration::secs(400 * 86_400),
            ),
        ])?;
        let floor = Argon2::default();
        let Argon2 {
            memory_kib,
            passes,
            lanes,
        } = self.argon2;
        if !(floor.memory_kib..=Argon2::MOST_MEMORY_KIB).contains(&memory_kib)
            || !(floor.passes..=Argon2::MOST_PASSES).contains(&passes)
            || !(floor.lanes..=Argon2::MOST_LANES).contains(&lanes)
        {
            return Err(ConfigError::key(
                "login.argon2",
                "memory_kib must be 19456 to 65536, passes 2 to 16, lanes 1 to 4",
            ));
        }
        if self.hash_threads.is_some_and(|n| !(1..=4).contains(&n)) {
            return Err(ConfigError::key("login.hash_threads", "must be 1 to 4"));
        }
        Ok(())
    }

    /// Returns the number of passwords that are hashed concurrently.
    pub fn hash_threads(&self) -> usize {
        self.hash_threads
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get().min(4)))
    }
}
