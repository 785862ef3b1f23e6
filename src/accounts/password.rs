//! Passwords: Argon2id (RFC 9106), NFC once at set and at check, no composition rules, a blocklist
//! (NIST SP 800-63B-4 §3.1.1).

use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use unicode_normalization::UnicodeNormalization;
use zeroize::Zeroizing;

use super::user::Username;
use crate::config;
use crate::config::limits::{PASSWORD_BYTES, PASSWORD_CHARS};
use crate::secret::Entropy;

/// A typed password in its one form. `Debug` shows nothing.
pub struct Password(Zeroizing<String>);

/// Why a typed text cannot be a password at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// More than 1,024 bytes: refused before any hashing.
    TooLong,
    /// It holds a NUL.
    Nul,
}

/// Why a password may not be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Weak {
    /// Fewer than 15 characters.
    #[error("a password needs at least 15 characters")]
    Short,
    /// Little more than the user's or the product's name.
    #[error("this password is little more than a name; choose something unrelated")]
    Name,
    /// On a list of common passwords, or made of entries of one.
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
    /// From what was typed, spaces and all.
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn parse(typed: &str) -> Result<Self, Unusable> {
        if typed.len() > PASSWORD_BYTES {
            return Err(Unusable::TooLong);
        }
        if typed.contains('\0') {
            return Err(Unusable::Nul);
        }
        Ok(Self(Zeroizing::new(typed.nfc().collect())))
    }

    /// Whether it may be set for this user.
    ///
    /// # Errors
    /// [`Weak`], with a sentence for the person.
    pub fn check_new(&self, user: &Username, product: &str) -> Result<(), Weak> {
        if self.0.chars().count() < PASSWORD_CHARS {
            return Err(Weak::Short);
        }
        if [user.as_str(), product]
            .iter()
            .any(|name| is_padded(&self.0, name))
        {
            return Err(Weak::Name);
        }
        // zxcvbn knows about 94,000 common passwords, words and names, and their spellings,
        // repetitions and combinations. It is quadratic: 100 characters say enough.
        let head: String = self.0.chars().take(100).collect();
        let estimate = zxcvbn::zxcvbn(&head, &[user.as_str(), product]);
        if estimate.score() < zxcvbn::Score::Three {
            return Err(Weak::Common);
        }
        Ok(())
    }

    /// The hash to store, as a PHC string. Costs some 20 ms and 19 MiB.
    ///
    /// # Errors
    /// A sentence, when the parameters are impossible.
    pub fn hash(&self, cost: &config::Argon2, entropy: &Entropy) -> Result<String, String> {
        let salt: [u8; 16] = entropy.bytes();
        hasher(cost)?
            .hash_password_with_salt(self.0.as_bytes(), &salt)
            .map(|hash| hash.to_string())
            .map_err(|error| error.to_string())
    }

    /// Whether it is the one that `stored` was made of. Without a stored hash the same work is done
    /// on a dummy, so that time tells nothing, and the answer is no.
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
        let right = PasswordHash::new(phc).is_ok_and(|hash| {
            Argon2::default()
                .verify_password(self.0.as_bytes(), &hash)
                .is_ok()
        });
        right && stored.is_some()
    }
}

/// Whether a stored hash was made at another cost than today's, so a successful login renews it.
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

/// Whether somebody else's hash may be stored: Argon2id in the current version, within our bounds.
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

/// Whether a password is a name and simple padding: digits, punctuation, repeated characters.
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

    fn refusal(password: &str) -> Result<(), Weak> {
        let user = Username::parse("margarethe").unwrap();
        Password::parse(password)
            .unwrap()
            .check_new(&user, "Portcullis")
    }

    #[test]
    fn short_named_and_common_passwords_are_refused() {
        assert_eq!(refusal("vK4!tq9#xW2$aa"), Err(Weak::Short));
        assert_eq!(refusal("margarethe12345"), Err(Weak::Name));
        assert_eq!(refusal("Portcullis!!!!!"), Err(Weak::Name));
        assert_eq!(refusal("password1234567"), Err(Weak::Common));
        assert_eq!(refusal("aaaaaaaaaaaaaaaa"), Err(Weak::Common));
        assert_eq!(refusal("qwertyuiopasdfgh"), Err(Weak::Common));
        assert_eq!(refusal("gravel-otter-92-lamp"), Ok(()));
        assert_eq!(refusal("kq7xw-3mfpz-9rtb"), Ok(()));
    }

    #[test]
    fn a_hash_matches_its_password_in_any_normal_form() {
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
    fn nothing_is_cut_off() {
        assert!(matches!(
            Password::parse(&"x".repeat(1_025)),
            Err(Unusable::TooLong)
        ));
        assert!(matches!(Password::parse("a\0b"), Err(Unusable::Nul)));
        assert!(Password::parse(&"x".repeat(1_024)).is_ok());
    }
}
