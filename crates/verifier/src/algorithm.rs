//! Signature algorithms (RFC 7518 §3.1).

/// A signature algorithm that this crate accepts (RFC 7518 §3.1). Other algorithms cannot be
/// represented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    RS256,
}

impl Algorithm {
    /// Returns the algorithm with this `alg` value, or `None` if it is not accepted. The comparison
    /// is case-sensitive.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "ES256" => Some(Self::ES256),
            "RS256" => Some(Self::RS256),
            _ => None,
        }
    }

    /// Returns the `alg` value of RFC 7518 §3.1.
    pub fn name(self) -> &'static str {
        match self {
            Self::ES256 => "ES256",
            Self::RS256 => "RS256",
        }
    }
}
