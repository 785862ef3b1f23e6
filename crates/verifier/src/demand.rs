//! When a `kid` that is not known may cause a fetch: at most once in 30 s, or anybody could make us
//! call the issuer as often as he likes.

use std::collections::HashSet;

/// Between two fetches that unknown `kid`s cause.
const ASK_EVERY_SECS: u64 = 30;
/// How many unknown `kid`s are remembered, and how long they may be.
const MAX_ABSENT: usize = 1024;
const MAX_KID_BYTES: usize = 128;

/// What unknown `kid`s have asked for.
#[derive(Default)]
pub(crate) struct Demand {
    pub(crate) fetch: Fetch,
    asked_at: Option<u64>,
    /// The entity tag of keys that we lack, and when it asked.
    etag: Option<(String, u64)>,
    /// `kid`s that a fetch did not find. They ask no more until a fetch on schedule.
    absent: HashSet<String>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Fetch {
    #[default]
    Idle,
    Asked,
    Running,
}

impl Demand {
    /// Whether a fetch is under way that will answer for `kid`; starts one if that is allowed.
    pub(crate) fn fetch_for(&mut self, kid: &str, now: u64) -> bool {
        if kid.is_empty() || kid.len() > MAX_KID_BYTES {
            return false;
        }
        if self.fetch == Fetch::Idle {
            let lately = self
                .asked_at
                .is_some_and(|then| now.abs_diff(then) < ASK_EVERY_SECS);
            if lately || self.absent.contains(kid) {
                return false;
            }
            self.fetch = Fetch::Asked;
            self.asked_at = Some(now);
        }
        if self.absent.len() < MAX_ABSENT {
            self.absent.insert(kid.to_owned());
        }
        true
    }

    /// Whether keys that go by `etag`, which we do not hold, are to be fetched: once, and again when
    /// a cache on the way gave us others.
    pub(crate) fn fetch_for_etag(&mut self, etag: &str, now: u64) -> bool {
        let lately =
            |(asked, then): &(String, u64)| asked == etag && now.abs_diff(*then) < ASK_EVERY_SECS;
        if self.fetch != Fetch::Idle || self.etag.as_ref().is_some_and(lately) {
            return false;
        }
        self.etag = Some((etag.to_owned(), now));
        self.fetch = Fetch::Asked;
        true
    }

    /// The fetch is over. `afresh` where it says nothing about the `kid`s that asked: it failed,
    /// or it was on schedule, after which every `kid` may ask anew.
    pub(crate) fn settled(&mut self, afresh: bool) {
        self.fetch = Fetch::Idle;
        if afresh {
            self.absent.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_kids_ask_once_in_30_seconds() {
        let mut demand = Demand::default();
        assert!(demand.fetch_for("a", 100));
        assert!(demand.fetch_for("b", 100), "joins the fetch under way");
        demand.fetch = Fetch::Idle;
        assert!(!demand.fetch_for("c", 129));
        assert!(!demand.fetch_for("a", 130), "known to be absent");
        assert!(demand.fetch_for("c", 130));
    }

    #[test]
    fn a_changed_etag_asks_once_in_30_seconds() {
        let mut demand = Demand::default();
        assert!(demand.fetch_for_etag("a", 100));
        assert!(!demand.fetch_for_etag("b", 100), "one fetch at a time");
        demand.fetch = Fetch::Idle;
        assert!(!demand.fetch_for_etag("a", 129));
        assert!(demand.fetch_for_etag("b", 101));
        demand.fetch = Fetch::Idle;
        assert!(demand.fetch_for_etag("b", 131));
    }

    #[test]
    fn no_kid_and_absurd_kids_do_not_ask() {
        let mut demand = Demand::default();
        assert!(!demand.fetch_for("", 100));
        assert!(!demand.fetch_for(&"k".repeat(MAX_KID_BYTES + 1), 100));
        assert!(demand.fetch_for(&"k".repeat(MAX_KID_BYTES), 100));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut demand = Demand::default();
        for n in 0..2 * MAX_ABSENT {
            assert!(demand.fetch_for(&n.to_string(), 100));
        }
        assert_eq!(demand.absent.len(), MAX_ABSENT);
    }
}
