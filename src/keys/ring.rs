//! Rings of signing keys, and the algorithms that a configuration offers.

pub use portcullis_verifier::Algorithm as Alg;

use crate::config;

/// The purpose of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Use {
    /// Access and ID tokens.
    Token,
    /// Frames of the revocation feed.
    Feed,
}

impl Use {
    /// Returns the stored text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Feed => "feed",
        }
    }

    /// Parses the stored text.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Token, Self::Feed]
            .into_iter()
            .find(|u| u.as_str() == text)
    }
}

/// The keys of an issuer with the same use and algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ring {
    /// The purpose of its keys.
    pub use_: Use,
    /// The algorithm of its keys.
    pub alg: Alg,
}

impl Ring {
    /// The ring that signs frames of the feed.
    pub const FEED: Self = Self {
        use_: Use::Feed,
        alg: Alg::ES256,
    };

    /// Returns the ring of the token keys of an algorithm.
    pub const fn token(alg: Alg) -> Self {
        Self {
            use_: Use::Token,
            alg,
        }
    }

    /// Returns the rings of a configuration: one for tokens of each algorithm, and the feed's.
    pub fn configured(keys: &config::Keys) -> Vec<Self> {
        let token = offered(keys).into_iter().map(Self::token);
        token.chain([Self::FEED]).collect()
    }
}

/// Returns the algorithms that the configuration offers for tokens; the default of OpenID Connect is first.
pub fn offered(keys: &config::Keys) -> Vec<Alg> {
    let named = |alg: &Alg| keys.algorithms.iter().any(|name| name == alg.name());
    [Alg::RS256, Alg::ES256].into_iter().filter(named).collect()
}

/// Checks that the configuration offers an algorithm.
///
/// # Errors
/// A sentence for the operator.
pub fn check_offered(keys: &config::Keys, alg: Alg) -> Result<(), String> {
    match offered(keys).contains(&alg) {
        true => Ok(()),
        false => Err(format!(
            "{} is not offered here: `keys.algorithms` leaves it out",
            alg.name()
        )),
    }
}

impl std::fmt::Display for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.use_.as_str(), self.alg.name())
    }
}
