//! Throttling of sign-in and client authentication (policy §4): failures cause waiting times that grow and end without
//! intervention. A user is never locked out, because a browser in which they signed in before has its own bucket.

use std::net::IpAddr;
use std::time::Duration;

use crate::config::Network;
use crate::config::limits::ATTEMPT_IN_PROGRESS;
use crate::id::UserId;
use crate::time::Timestamp;

/// The limits of one kind of bucket.
#[derive(Debug)]
pub struct Rule {
    /// Failures in a window that cause no waiting time.
    pub free: u32,
    /// Length of the window. It starts with the first failure, or with the last one if `rolling`.
    pub window: Duration,
    /// Whether each failure restarts the window.
    pub rolling: bool,
    /// The waiting time after the last free failure.
    pub step: Duration,
    /// How often the waiting time doubles before it is `most`.
    pub doublings: u32,
    /// The longest waiting time.
    pub most: Duration,
    /// Consecutive failures after which no attempt is admitted.
    pub in_a_row: u32,
}

const ENDLESS: u32 = u32::MAX;

const fn steady(free: u32, window: Duration, step: Duration) -> Rule {
    Rule {
        free,
        window,
        rolling: false,
        step,
        doublings: 0,
        most: step,
        in_a_row: ENDLESS,
    }
}

const HOUR: Duration = Duration::from_secs(3_600);

/// One account from one address: five free failures, then 1, 2, 4 … 900 s.
pub static ACCOUNT_AND_ADDRESS: Rule = Rule {
    free: 5,
    window: Duration::from_secs(86_400),
    rolling: true,
    step: Duration::from_secs(1),
    doublings: 10,
    most: Duration::from_secs(900),
    in_a_row: ENDLESS,
};
/// One account from any address: ten free failures per hour, then one attempt every 30 s. After 100 consecutive failures
/// only a known device is admitted until the password is replaced.
pub static ACCOUNT: Rule = Rule {
    in_a_row: 100,
    ..steady(10, HOUR, Duration::from_secs(30))
};
/// One account from a browser in which the user signed in before.
pub static DEVICE: Rule = steady(10, HOUR, Duration::from_secs(30));
/// All sign-ins from one address or its network.
pub static NETWORK: Rule = steady(30, Duration::from_secs(600), Duration::from_secs(600));
/// Failed client authentications from one address.
pub static CLIENTS: Rule = steady(60, Duration::from_secs(60), Duration::from_secs(60));

/// A counter with its rule.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// Key of the database row. It contains the keyed hash of a user name, as log lines do.
    pub key: String,
    /// The limits.
    pub rule: &'static Rule,
    /// The user whose attempts it counts; `None` for a network, and for a name that no user has.
    pub user: Option<UserId>,
}

impl Bucket {
    fn new(kind: &str, key: &str, rule: &'static Rule, user: Option<&UserId>) -> Self {
        Self {
            key: format!("{kind}:{key}"),
            rule,
            user: user.cloned(),
        }
    }

    /// Returns whether the bucket counts a network.
    pub fn is_network(&self) -> bool {
        std::ptr::eq(self.rule, &raw const NETWORK)
    }
}

/// An attempt to sign in with a password.
#[derive(Clone, Debug)]
pub struct Attempt {
    account: Bucket,
    others: Vec<Bucket>,
}

impl Attempt {
    /// Creates an attempt from an unknown browser. `user_ref` is the keyed hash of the user name, and `user`
    /// the user of that name, if there is one.
    pub fn from_anywhere(user_ref: &str, user: Option<&UserId>, address: IpAddr) -> Self {
        let mut others = networks(address);
        let pair = format!("{user_ref}:{}", single(address));
        others.push(Bucket::new("pair", &pair, &ACCOUNT_AND_ADDRESS, user));
        Self {
            account: account(user_ref, user),
            others,
        }
    }

    /// Creates an attempt from a browser in which the user has signed in before.
    pub fn from_known_device(user_ref: &str, user: Option<&UserId>, device: &str) -> Self {
        let key = format!("{user_ref}:{device}");
        Self {
            account: Bucket::new("device", &key, &DEVICE, user),
            others: Vec::new(),
        }
    }

    /// Returns the buckets that must have room, always in the same order.
    pub fn buckets(&self) -> impl Iterator<Item = &Bucket> {
        self.others.iter().chain(std::iter::once(&self.account))
    }

    /// Returns the bucket that counts the account.
    pub fn account(&self) -> &Bucket {
        &self.account
    }
}

/// Returns the bucket that counts an account from any address.
pub fn account(user_ref: &str, user: Option<&UserId>) -> Bucket {
    Bucket::new("account", user_ref, &ACCOUNT, user)
}

/// Returns the bucket that counts failed client authentications from an address.
pub fn failed_client(address: IpAddr) -> Bucket {
    Bucket::new("clients", &single(address).to_string(), &CLIENTS, None)
}

fn single(address: IpAddr) -> Network {
    Network::around(address, 32, 64)
}

/// Returns the networks of an address, the widest first.
fn networks(address: IpAddr) -> Vec<Bucket> {
    let wide = Network::around(address, 24, 64);
    let single = single(address);
    let both = [wide, single];
    let different = if wide == single { &both[1..] } else { &both };
    let bucket = |network: &Network| Bucket::new("network", &network.to_string(), &NETWORK, None);
    different.iter().map(bucket).collect()
}

/// Returns the keys of all counters of an address (those of its networks, the widest first, and that of client
/// authentication), and the suffix of the keys that count one account from this address.
pub fn keys_of_address(address: IpAddr) -> (Vec<String>, String) {
    let networks = networks(address).into_iter().map(|bucket| bucket.key);
    let clients = failed_client(address).key;
    let pairs = format!(":{}", single(address));
    (networks.chain([clients]).collect(), pairs)
}

/// Whether an attempt may be evaluated. Until its outcome is recorded it occupies the room of one failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The attempt may be evaluated.
    Admitted,
    /// Not before this waiting time is over, because earlier attempts failed.
    Wait(Duration),
    /// Only from a known device, or after the password is replaced.
    Exhausted,
    /// Not now: if all open attempts fail, the bucket has no room left.
    Busy,
}

/// The stored state of a bucket.
#[derive(Clone, Copy, Debug)]
pub struct Counter {
    /// Failures in the window.
    pub failures: i64,
    /// When the window ends.
    pub window_ends: Timestamp,
    /// Consecutive failures.
    pub in_a_row: i64,
    /// The end of the waiting time, if there is one.
    pub next_at: Timestamp,
    /// Attempts whose outcome is open.
    pub in_progress: i64,
    /// When attempts that are still open count as abandoned.
    pub in_progress_until: Timestamp,
}

impl Counter {
    /// Returns whether the open attempts will never have an outcome, because their node has stopped.
    pub fn is_abandoned(&self, now: Timestamp) -> bool {
        self.in_progress > 0 && !is_due(self.in_progress_until, ATTEMPT_IN_PROGRESS, now)
    }

    /// Returns why a further attempt is rejected, if it is. The statements of `db::throttles` use the same conditions.
    pub fn refusal(&self, rule: &Rule, now: Timestamp) -> Option<Verdict> {
        if is_due(self.next_at, rule.most, now) {
            return Some(Verdict::Wait(self.next_at.since(now)));
        }
        let most_in_a_row = i64::from(rule.in_a_row);
        if self.in_a_row >= most_in_a_row {
            return Some(Verdict::Exhausted);
        }
        let failures = match is_due(self.window_ends, rule.window, now) {
            true => self.failures,
            false => 0,
        };
        let full = self.in_progress > 0
            && (self.in_progress + failures >= i64::from(rule.free)
                || self.in_progress + self.in_a_row >= most_in_a_row);
        (full && !self.is_abandoned(now)).then_some(Verdict::Busy)
    }
}

/// Returns whether a stored instant is in the future. One that is further away than `longest` was written by a wrong
/// clock and counts as past.
fn is_due(at: Timestamp, longest: Duration, now: Timestamp) -> bool {
    now < at && at <= now + longest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_secs(1_800_000_000)
    }

    fn counter(failures: i64, in_progress: i64) -> Counter {
        Counter {
            failures,
            window_ends: now() + HOUR,
            in_a_row: failures,
            next_at: Timestamp::from_micros(0),
            in_progress,
            in_progress_until: now() + ATTEMPT_IN_PROGRESS,
        }
    }

    #[test]
    fn full_bucket_waits_after_failures_and_is_busy_while_outcomes_are_open() {
        let refusal = |counter: Counter| counter.refusal(&ACCOUNT, now());
        assert_eq!(refusal(counter(9, 0)), None);
        assert_eq!(refusal(counter(0, 9)), None);
        assert_eq!(refusal(counter(0, 10)), Some(Verdict::Busy));
        assert_eq!(refusal(counter(4, 6)), Some(Verdict::Busy));
        let waits = Counter {
            next_at: now() + Duration::from_secs(30),
            ..counter(10, 0)
        };
        let wait = Some(Verdict::Wait(Duration::from_secs(30)));
        assert_eq!(refusal(waits), wait);
        assert_eq!(
            refusal(Counter {
                in_progress: 3,
                ..waits
            }),
            wait
        );
        // After the wait one attempt at a time.
        assert_eq!(refusal(counter(10, 0)), None);
        assert_eq!(refusal(counter(10, 1)), Some(Verdict::Busy));
        assert_eq!(refusal(counter(100, 0)), Some(Verdict::Exhausted));
    }

    #[test]
    fn instants_of_a_wrong_clock_are_absent() {
        let later = now() + Duration::from_secs(100 * 86_400);
        let poisoned = Counter {
            window_ends: later,
            next_at: later,
            ..counter(30, 1)
        };
        assert_eq!(poisoned.refusal(&NETWORK, now()), None);
        let abandoned = Counter {
            in_progress_until: later,
            ..counter(0, 30)
        };
        assert!(abandoned.is_abandoned(now()));
        assert_eq!(abandoned.refusal(&NETWORK, now()), None);
    }
}
