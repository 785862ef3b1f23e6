//! Rate limit for fetches of the keys because of an unknown `kid`: at most once in 30 s. Without
//! it, an attacker could cause any number of requests to the issuer.

use std::collections::HashSet;

/// Minimum interval between two fetches for unknown `kid`s, in seconds.
const MIN_INTERVAL_SECS: u64 = 30;
/// Maximum number of unknown `kid`s that are remembered.
const MAX_ABSENT: usize = 1024;
/// Maximum length of a `kid` that may cause a fetch, in bytes.
const MAX_KID_BYTES: usize = 128;

/// Decides whether an unknown `kid` or a changed entity tag may cause a fetch of the keys.
#[derive(Default)]
pub(crate) struct RefetchLimiter {
    pub(crate) state: FetchState,
    /// When an unknown `kid` last caused a fetch, in seconds since the Unix epoch.
    requested_at: Option<u64>,
    /// The entity tag that last caused a fetch, and when, in seconds since the Unix epoch.
    requested_etag: Option<(String, u64)>,
    /// `kid`s that a fetch did not find. They cause no fetch until the next scheduled fetch.
    absent: HashSet<String>,
}

/// State of the task that fetches the keys.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum FetchState {
    #[default]
    Idle,
    Requested,
    Running,
}

impl RefetchLimiter {
    /// Requests a fetch for an unknown `kid`, if that is allowed. Returns whether a fetch that
    /// covers `kid` is requested or running.
    pub(crate) fn request_for_kid(&mut self, kid: &str, now: u64) -> bool {
        if kid.is_empty() || kid.len() > MAX_KID_BYTES {
            return false;
        }
        if self.state == FetchState::Idle {
            let is_too_soon = self
                .requested_at
                .is_some_and(|then| now.abs_diff(then) < MIN_INTERVAL_SECS);
            if is_too_soon || self.absent.contains(kid) {
                return false;
            }
            self.state = FetchState::Requested;
            self.requested_at = Some(now);
        }
        if self.absent.len() < MAX_ABSENT {
            self.absent.insert(kid.to_owned());
        }
        true
    }

    /// Requests a fetch because the issuer's keys now have this entity tag and the cached keys do
    /// not. Returns whether a fetch was requested. The same entity tag may cause another fetch
    /// after 30 s, in case an intermediate cache returned the old keys.
    pub(crate) fn request_for_etag(&mut self, etag: &str, now: u64) -> bool {
        let is_too_soon = |(requested, then): &(String, u64)| {
            requested == etag && now.abs_diff(*then) < MIN_INTERVAL_SECS
        };
        if self.state != FetchState::Idle || self.requested_etag.as_ref().is_some_and(is_too_soon) {
            return false;
        }
        self.requested_etag = Some((etag.to_owned(), now));
        self.state = FetchState::Requested;
        true
    }

    /// Records that the fetch has finished. With `forget_absent`, every `kid` may cause a fetch
    /// again: the fetch failed and so says nothing about the `kid`s, or it was a scheduled one.
    pub(crate) fn finish(&mut self, forget_absent: bool) {
        self.state = FetchState::Idle;
        if forget_absent {
            self.absent.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_kids_cause_one_fetch_in_30_seconds() {
        let mut limiter = RefetchLimiter::default();
        assert!(limiter.request_for_kid("a", 100));
        assert!(
            limiter.request_for_kid("b", 100),
            "joins the requested fetch"
        );
        limiter.state = FetchState::Idle;
        assert!(!limiter.request_for_kid("c", 129));
        assert!(!limiter.request_for_kid("a", 130), "known to be absent");
        assert!(limiter.request_for_kid("c", 130));
    }

    #[test]
    fn changed_etag_causes_one_fetch_in_30_seconds() {
        let mut limiter = RefetchLimiter::default();
        assert!(limiter.request_for_etag("a", 100));
        assert!(!limiter.request_for_etag("b", 100), "one fetch at a time");
        limiter.state = FetchState::Idle;
        assert!(!limiter.request_for_etag("a", 129));
        assert!(limiter.request_for_etag("b", 101));
        limiter.state = FetchState::Idle;
        assert!(limiter.request_for_etag("b", 131));
    }

    #[test]
    fn empty_and_overlong_kids_cause_no_fetch() {
        let mut limiter = RefetchLimiter::default();
        assert!(!limiter.request_for_kid("", 100));
        assert!(!limiter.request_for_kid(&"k".repeat(MAX_KID_BYTES + 1), 100));
        assert!(limiter.request_for_kid(&"k".repeat(MAX_KID_BYTES), 100));
    }

    #[test]
    fn absent_kids_are_bounded() {
        let mut limiter = RefetchLimiter::default();
        for n in 0..2 * MAX_ABSENT {
            assert!(limiter.request_for_kid(&n.to_string(), 100));
        }
        assert_eq!(limiter.absent.len(), MAX_ABSENT);
    }
}
