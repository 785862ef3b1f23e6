//! Passwords: Argon2id (RFC 9106), Unicode normalization form NFC, no composition rules, and a blocklist (NIST SP
//! 800-63B-4 §3.1.1).

use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use unicode_normalization::UnicodeNormalization;
use zeroize::Zeroizing;

use super::user::Username;
use crate::config;
use crate::config::limits::{PASSWORD_BYTES, PASSWORD_CHARS};
use crate::secret::Entropy;

/// A typed password in NFC. Its `Debug` output does not contain the password.
pub struct Password(Zeroizing<String>);

/// Why a typed text cannot be a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    /// More than 1,024 bytes. Rejected before hashing.
    #[error("a password has at most 1024 bytes")]
    TooLong,
    /// It contains a NUL character.
    #[error("a password must not contain a NUL character")]
    Nul,
}

/// Why a password may not be set. The message is for the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NewPasswordError {
    /// The text cannot be a password.
    #[error(transparent)]
    Unusable(#[from] PasswordError),
    /// Fewer than 15 characters.
    #[error("a password needs at least 15 characters")]
    Short,
    /// The user's or the product's name with simple padding.
    #[error("this password is little more than a name; choose something unrelated")]
    Name,
    /// On a list of common passwords, or composed of entries of the list.
    #[error(
        "this password is easy to guess; choose several unrelated words or let a password manager make one"
    )]
    Common,
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password")
    }
}

impl Password {
    /// Normalizes what the user typed. Spaces are kept.
    ///
    /// # Errors
    /// [`PasswordError`].
    pub fn parse(typed: &str) -> Result<Self, PasswordError> {
        if typed.len() > PASSWORD_BYTES {
            return Err(PasswordError::TooLong);
        }
        if typed.contains('\0') {
            return Err(PasswordError::Nul);
        }
        Ok(Self(Zeroizing::new(typed.nfc().collect())))
    }

    /// Parses a password that is to be set for a user.
    ///
    /// # Errors
    /// [`NewPasswordError`].
    pub fn parse_new(
        typed: &str,
        user: &Username,
        product: &str,
    ) -> Result<Self, NewPasswordError> {
        let password = Self::parse(typed)?;
        password.check_strength(user, product)?;
        Ok(password)
    }

    fn check_strength(&self, user: &Username, product: &str) -> Result<(), NewPasswordError> {
        if self.0.chars().count() < PASSWORD_CHARS {
            return Err(NewPasswordError::Short);
        }
        if [user.as_str(), product]
            .iter()
            .any(|name| is_padded(&self.0, name))
        {
            return Err(NewPasswordError::Name);
        }
        // zxcvbn recognizes about 94,000 common passwords, words and names, and their spellings, repetitions and
        // combinations. Its time is quadratic, so only the first 100 characters are estimated.
        let head: String = self.0.chars().take(100).collect();
        let estimate = zxcvbn::zxcvbn(&head, &[user.as_str(), product]);
        if estimate.score() < zxcvbn::Score::Three {
            return Err(NewPasswordError::Common);
        }
        Ok(())
    }

    /// Returns the hash to store, as a PHC string. With the default parameters this takes about 20 ms and 19 MiB.
    ///
    /// # Errors
    /// A sentence, if the parameters are invalid.
    pub fn hash(&self, cost: &config::Argon2, entropy: &Entropy) -> Result<String, String> {
        let salt: [u8; 16] = entropy.bytes();
        hasher(cost)?
            .hash_password_with_salt(self.0.as_bytes(), &salt)
            .map(|hash| hash.to_string())
            .map_err(|error| error.to_string())
    }

    /// Returns whether `stored` is a hash of this password. Without a stored hash the same work is done on a dummy hash,
    /// so that the time does not reveal it, and the result is `false`.
    pub fn matches(&self, stored: Option<&str>, cost: &config::Argon2) -> bool {
        let dummy;
        let phc = match stored {
            Some(phc) => phc,
            None => {
                let config::Argon2 {
                    memory_kib,
                    passes,
                    lanes,
                } = cost;
                dummy = format!(
                    "$argon2id$v=19$m={memory_kib},t={passes},p={lanes}$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
                );
                &dummy
            }
        };
        let is_match = PasswordHash::new(phc).is_ok_and(|hash| {
            Argon2::default()
                .verify_password(self.0.as_bytes(), &hash)
                .is_ok()
        });
        is_match && stored.is_some()
    }
}

/// Returns whether a stored hash has another cost than the configured one. A successful sign-in then replaces it.
pub fn is_outdated(phc: &str, cost: &config::Argon2) -> bool {
    let config::Argon2 {
        memory_kib,
        passes,
        lanes,
    } = cost;
    !phc.starts_with(&format!(
        "$argon2id$v=19$m={memory_kib},t={passes},p={lanes}$"
    ))
}

/// Returns whether a hash from another system may be stored: Argon2id in the current version, with a cost within the
/// bounds of `login.argon2`.
pub fn is_acceptable(phc: &str) -> bool {
    let Ok(hash) = PasswordHash::new(phc) else {
        return false;
    };
    let floor = config::Argon2::default();
    let cost = Params::try_from(&hash);
    hash.algorithm.as_str() == "argon2id"
        && hash.version == Some(Version::V0x13.into())
        && hash.salt.is_some()
        && hash.hash.is_some()
        && cost.is_ok_and(|cost| {
            (floor.memory_kib..=config::Argon2::MOST_MEMORY_KIB).contains(&cost.m_cost())
                && (floor.passes..=config::Argon2::MOST_PASSES).contains(&cost.t_cost())
                && (floor.lanes..=config::Argon2::MOST_LANES).contains(&cost.p_cost())
        })
}

fn hasher(cost: &config::Argon2) -> Result<Argon2<'static>, String> {
    let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32))
        .map_err(|e| e.to_string())?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

/// Returns whether a password is a name with simple padding: digits, punctuation, repeated characters.
fn is_padded(password: &str, name: &str) -> bool {
    let fold = |text: &str| {
        text.chars()
            .filter(|c| c.is_alphabetic())
            .flat_map(char::to_lowercase)
            .collect::<String>()
    };
    let (password, name) = (fold(password), fold(name));
    if name.len() < 3 {
        return false;
    }
    let rest: std::collections::BTreeSet<char> = password.replace(&name, "").chars().collect();
    password.contains(&name) && rest.len() <= 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(password: &str) -> Result<(), NewPasswordError> {
        let user = Username::parse("margarethe").unwrap();
        Password::parse(password)
            .unwrap()
            .check_strength(&user, "Portcullis")
    }

    #[test]
    fn short_named_and_common_passwords_are_rejected() {
        assert_eq!(check("vK4!tq9#xW2$aa"), Err(NewPasswordError::Short));
        assert_eq!(check("margarethe12345"), Err(NewPasswordError::Name));
        assert_eq!(check("Portcullis!!!!!"), Err(NewPasswordError::Name));
        assert_eq!(check("password1234567"), Err(NewPasswordError::Common));
        assert_eq!(check("aaaaaaaaaaaaaaaa"), Err(NewPasswordError::Common));
        assert_eq!(check("qwertyuiopasdfgh"), Err(NewPasswordError::Common));
        assert_eq!(check("gravel-otter-92-lamp"), Ok(()));
        assert_eq!(check("kq7xw-3mfpz-9rtb"), Ok(()));
    }

    #[test]
    fn hash_matches_password_in_any_normal_form() {
        let cost = config::Argon2::default();
        let password = Password::parse(" pässwörd with späces ").unwrap();
        let phc = password.hash(&cost, &Entropy::seeded(1)).unwrap();
        assert!(phc.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{phc}");
        assert!(!is_outdated(&phc, &cost));
        let decomposed = Password::parse(" pa\u{308}sswo\u{308}rd with spa\u{308}ces ").unwrap();
        assert!(decomposed.matches(Some(&phc), &cost));
        let trimmed = Password::parse("pässwörd with späces").unwrap();
        assert!(!trimmed.matches(Some(&phc), &cost));
        assert!(!Password::parse("").unwrap().matches(None, &cost));
    }

    #[test]
    fn long_passwords_are_rejected_and_not_truncated() {
        assert!(matches!(
            Password::parse(&"x".repeat(1_025)),
            Err(PasswordError::TooLong)
        ));
        assert!(matches!(Password::parse("a\0b"), Err(PasswordError::Nul)));
        assert!(Password::parse(&"x".repeat(1_024)).is_ok());
    }
}
