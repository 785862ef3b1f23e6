//! Decisions about a sign-in: which factors are missing, what `acr` and `amr` the completed ones amount to, and
//! when the session expires.

use std::time::Duration;

use super::session::{Acr, Amr, Factor, Login, Session};
use super::user::User;
use crate::id::Sid;
use crate::secret::Hash;
use crate::time::Timestamp;

/// The factors that a user completed in one sign-in, in the order of completion, each at most once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompletedFactors(Vec<Factor>);

/// How many different factors a sign-in requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequiredFactors {
    /// One.
    One,
    /// Two.
    Two,
}

/// How far a sign-in has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SignInStage {
    /// The first factor is completed and a second one is required. There is no session yet.
    SecondFactorMissing(CompletedFactors),
    /// All required factors are completed.
    Complete(Authentication),
}

/// A completed authentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authentication {
    /// The claim `acr`.
    pub acr: Acr,
    /// The claim `amr`.
    pub amr: Amr,
}

impl CompletedFactors {
    /// Creates the list with the first completed factor.
    pub fn first(factor: Factor) -> Self {
        Self(vec![factor])
    }

    /// Adds a factor, unless it is already completed.
    #[must_use]
    pub fn with(mut self, factor: Factor) -> Self {
        if !self.0.contains(&factor) {
            self.0.push(factor);
        }
        self
    }

    /// Decides what follows from the completed factors.
    pub fn evaluate(self, required: RequiredFactors) -> SignInStage {
        match (required, self.0.len()) {
            (RequiredFactors::Two, ..2) => SignInStage::SecondFactorMissing(self),
            _ => SignInStage::Complete(self.authentication()),
        }
    }

    /// Returns the authentication of a sign-in for which one factor is sufficient.
    pub fn authentication(self) -> Authentication {
        Authentication {
            acr: Acr::Password,
            amr: Amr::new(self.0),
        }
    }
}

impl Authentication {
    /// Creates the session of `user` that begins at `now` under a new cookie, and expires after `lifetime`.
    pub fn session(
        self,
        user: &User,
        sid: Sid,
        cookie: Hash,
        lifetime: Duration,
        now: Timestamp,
    ) -> Session {
        Session {
            id_hash: cookie,
            login: Login {
                sid,
                user_id: user.id.clone(),
                user_epoch: user.auth_epoch,
                auth_time: now,
                acr: self.acr,
                amr: self.amr,
            },
            seen_at: now,
            expires_at: now + lifetime,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completed_password_is_the_first_of_two_factors() {
        let password = || CompletedFactors::first(Factor::Password);
        let twice = password().with(Factor::Password);
        assert_eq!(twice, password());
        assert_eq!(
            twice.evaluate(RequiredFactors::Two),
            SignInStage::SecondFactorMissing(password())
        );
        let complete = SignInStage::Complete(Authentication {
            acr: Acr::Password,
            amr: Amr::new(vec![Factor::Password]),
        });
        assert_eq!(password().evaluate(RequiredFactors::One), complete);
    }
}
