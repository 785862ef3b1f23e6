//! Throttles of sign-in and client authentication (policy §4): failures cost time. The wait grows,
//! ends by itself, and locks nobody out: a browser that signed in before has a bucket of its own.

use std::net::IpAddr;
use std::time::Duration;

use crate::config::Network;

/// How one kind of bucket fills.
#[derive(Debug)]
pub struct Rule {
    /// Failures in a window that cost nothing.
    pub free: u32,
    /// How long failures count together: from the first on, or always from the last when `rolling`.
    pub window: Duration,
    /// Whether each failure begins the window anew.
    pub rolling: bool,
    /// The wait after the last free failure.
    pub step: Duration,
    /// How often the wait doubles before it is `most`.
    pub doublings: u32,
    /// The longest wait.
    pub most: Duration,
    /// Failures without a success between them, after which there is no further try.
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

/// One account from one address: five free, then 1, 2, 4 … 900 s.
pub static ACCOUNT_AND_ADDRESS: Rule = Rule {
    free: 5,
    window: Duration::from_secs(86_400),
    rolling: true,
    step: Duration::from_secs(1),
    doublings: 10,
    most: Duration::from_secs(900),
    in_a_row: ENDLESS,
};
/// One account from anywhere: ten an hour, then one try each 30 s; after a hundred in a row only a known
/// device may try, until there is a new password.
pub static ACCOUNT: Rule = Rule {
    in_a_row: 100,
    ..steady(10, HOUR, Duration::from_secs(30))
};
/// One account from a browser that signed in to it before.
pub static DEVICE: Rule = steady(10, HOUR, Duration::from_secs(30));
/// All sign-ins from an address or its network.
pub static NETWORK: Rule = steady(30, Duration::from_secs(600), Duration::from_secs(600));
/// Clients that fail to authenticate, from one address.
pub static CLIENTS: Rule = steady(60, Duration::from_secs(60), Duration::from_secs(60));

/// A counter and its rule.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// Its name in the database; of a person only what the log has, too.
    pub key: String,
    /// How it fills.
    pub rule: &'static Rule,
}

impl Bucket {
    fn new(kind: &str, key: &str, rule: &'static Rule) -> Self {
        Self {
            key: format!("{kind}:{key}"),
            rule,
        }
    }

    /// Whether it counts a network.
    pub fn is_network(&self) -> bool {
        std::ptr::eq(self.rule, &raw const NETWORK)
    }
}

/// A try to sign in with a password.
#[derive(Clone, Debug)]
pub struct Attempt {
    account: Bucket,
    others: Vec<Bucket>,
}

impl Attempt {
    /// From a browser that nobody knows. `person` is the keyed hash of the name, existing or not.
    pub fn from_anywhere(person: &str, address: IpAddr) -> Self {
        let single = Network::around(address, 32, 64);
        let mut others = Vec::new();
        if address.to_canonical().is_ipv4() {
            let wide = Network::around(address, 24, 64);
            others.push(Bucket::new("network", &wide.to_string(), &NETWORK));
        }
        others.push(Bucket::new("network", &single.to_string(), &NETWORK));
        others.push(Bucket::new(
            "pair",
            &format!("{person}:{single}"),
            &ACCOUNT_AND_ADDRESS,
        ));
        Self {
            account: account(person),
            others,
        }
    }

    /// From a browser that signed in to this account before.
    pub fn from_known_device(person: &str, device: &str) -> Self {
        Self {
            account: Bucket::new("device", &format!("{person}:{device}"), &DEVICE),
            others: Vec::new(),
        }
    }

    /// All that must have room, always in one order.
    pub fn buckets(&self) -> impl Iterator<Item = &Bucket> {
        self.others.iter().chain(std::iter::once(&self.account))
    }

    /// The one that stands for the account.
    pub fn account(&self) -> &Bucket {
        &self.account
    }
}

/// What counts an account from anywhere.
pub fn account(person: &str) -> Bucket {
    Bucket::new("account", person, &ACCOUNT)
}

/// A client that fails to authenticate.
pub fn failed_client(address: IpAddr) -> Bucket {
    let single = Network::around(address, 32, 64);
    Bucket::new("clients", &single.to_string(), &CLIENTS)
}

/// Whether a try may be evaluated. It counts as a failure until it turns out to be none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may. `spray`: with it a network spends the last of what is free.
    Admitted {
        /// If it fails, somebody tries one network's worth of names.
        spray: bool,
    },
    /// Not before this time is over.
    Wait(Duration),
    /// Only from a known device, or after a new password.
    Exhausted,
}
