//! The server secret: 32 random bytes, sealed like a key. The keys of MACs derive from it by HKDF,
//! one label each, so that none can be taken for another.

use aws_lc_rs::{hkdf, hmac};
use zeroize::Zeroizing;

use super::seal::Row;
use super::{KeyError, Keychain, SealedSecret};
use crate::secret::{Entropy, base64url, equal};
use crate::time::Timestamp;

/// The root of form tokens and other MACs.
pub struct ServerSecret {
    csrf: hmac::Key,
    log: hmac::Key,
}

impl ServerSecret {
    /// Makes and seals the first secret.
    ///
    /// # Errors
    /// [`KeyError::Generate`].
    pub fn generate(
        keychain: &Keychain,
        entropy: &Entropy,
        now: Timestamp,
    ) -> Result<SealedSecret, KeyError> {
        let bytes = Zeroizing::new(entropy.bytes::<32>());
        let mut secret = SealedSecret {
            id: crate::id::uuid(entropy, now),
            generation: 1,
            sealed: String::new(),
            created_at: now,
        };
        secret.sealed = keychain.seal(&row(&secret), bytes.as_ref(), entropy)?;
        Ok(secret)
    }

    /// Opens a stored secret.
    ///
    /// # Errors
    /// [`KeyError::UnknownKek`], [`KeyError::Corrupt`].
    pub fn open(stored: &SealedSecret, keychain: &Keychain) -> Result<Self, KeyError> {
        let root = keychain.open(&row(stored), &stored.sealed)?;
        Ok(Self {
            csrf: derive(&root, b"csrf")?,
            log: derive(&root, b"log")?,
        })
    }

    /// The token of a form: bound to the browser's cookie and to what the form is for.
    pub fn form_token(&self, cookie: &str, purpose: &str) -> String {
        let tag = hmac::sign(&self.csrf, form(cookie, purpose).as_bytes());
        base64url(tag.as_ref())
    }

    /// Whether `token` is [`ServerSecret::form_token`] of the same cookie and purpose.
    pub fn accepts_form(&self, token: &str, cookie: &str, purpose: &str) -> bool {
        equal(
            token.as_bytes(),
            self.form_token(cookie, purpose).as_bytes(),
        )
    }

    /// What the log calls a person: nobody learns or tries names from it.
    pub fn user_ref(&self, username: &str) -> String {
        let tag = hmac::sign(&self.log, username.as_bytes());
        base64url(&tag.as_ref()[..12])
    }
}

fn form(cookie: &str, purpose: &str) -> String {
    format!("{}:{cookie}{purpose}", cookie.len())
}

fn derive(root: &[u8], label: &[u8]) -> Result<hmac::Key, KeyError> {
    let mut bytes = Zeroizing::new([0u8; 32]);
    hkdf::Salt::new(hkdf::HKDF_SHA256, b"portcullis")
        .extract(root)
        .expand(&[label], hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(bytes.as_mut()))
        .map_err(|_| KeyError::Generate("key derivation".to_owned()))?;
    Ok(hmac::Key::new(hmac::HMAC_SHA256, bytes.as_ref()))
}

fn row(secret: &SealedSecret) -> Row<'_> {
    Row {
        table: "server_secrets",
        key: &secret.id,
        columns: vec![
            Some(secret.generation.to_string()),
            Some(secret.created_at.micros().to_string()),
        ],
    }
}
