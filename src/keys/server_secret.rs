//! The server secret: 32 random bytes, sealed like a signing key. HKDF derives a key for each kind of MAC from it, with
//! a different label each, so that a MAC of one kind is not valid as another.

use aws_lc_rs::{hkdf, hmac};
use zeroize::Zeroizing;

use super::error::KeyError;
use super::seal::{Keychain, Row};
use crate::audit;
use crate::id::GrantId;
use crate::secret::{Entropy, REFRESH_PREFIX, Secret, base64url, equal, from_base64url};
use crate::time::Timestamp;

/// A row of `server_secrets`.
#[derive(Clone, Debug)]
pub struct SealedSecret {
    /// Row id.
    pub id: String,
    /// 1, 2, 3 and so on; unique, so two nodes cannot both create the same one.
    pub generation: i64,
    /// The sealed value.
    pub sealed: String,
    /// When it was created.
    pub created_at: Timestamp,
}

/// The keys of form tokens, refresh tokens and other MACs, derived from one secret.
pub struct ServerSecret {
    number: u8,
    csrf: hmac::Key,
    refresh: hmac::Key,
    log: hmac::Key,
    audit: hmac::Key,
}

/// The length of secret number, grant id and generation.
const REFRESH_HEAD_BYTES: usize = 1 + 16 + 4;

impl ServerSecret {
    /// Generates and seals the secret number `generation`.
    ///
    /// # Errors
    /// [`KeyError::Generate`].
    pub fn generate(
        generation: i64,
        keychain: &Keychain,
        entropy: &Entropy,
        now: Timestamp,
    ) -> Result<SealedSecret, KeyError> {
        let bytes = Zeroizing::new(entropy.bytes::<32>());
        let mut secret = SealedSecret {
            id: crate::id::uuid(entropy, now),
            generation,
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
            number: u8::try_from(stored.generation % 256).unwrap_or(0),
            csrf: derive(&root, b"csrf")?,
            refresh: derive(&root, b"refresh")?,
            log: derive(&root, b"log")?,
            audit: derive(&root, b"audit")?,
        })
    }

    /// Returns the CSRF token of a form, bound to the browser's cookie and the purpose of the form.
    pub fn form_token(&self, cookie: &str, purpose: &str) -> String {
        let tag = hmac::sign(&self.csrf, form(cookie, purpose).as_bytes());
        base64url(tag.as_ref())
    }

    /// Returns the refresh token of a generation of a grant: both, and a MAC over them. The result is always the same, so
    /// it is not stored.
    pub fn refresh_token(&self, grant: &GrantId, generation: i64) -> Secret {
        let grant = uuid::Uuid::parse_str(grant.as_str()).unwrap_or_default();
        let generation = u32::try_from(generation).unwrap_or(u32::MAX);
        let mut bytes = vec![self.number];
        bytes.extend_from_slice(grant.as_bytes());
        bytes.extend_from_slice(&generation.to_be_bytes());
        let tag = hmac::sign(&self.refresh, &bytes);
        bytes.extend_from_slice(tag.as_ref());
        Secret::from_text(format!("{REFRESH_PREFIX}{}", base64url(&bytes)))
    }

    /// Returns grant and generation of a refresh token of this secret. The MAC is checked first.
    pub fn read_refresh_token(&self, token: &str) -> Option<(GrantId, i64)> {
        let bytes = from_base64url(token.strip_prefix(REFRESH_PREFIX)?)?;
        let (head, tag) = bytes.split_at_checked(REFRESH_HEAD_BYTES)?;
        hmac::verify(&self.refresh, head, tag).ok()?;
        let grant = uuid::Uuid::from_slice(&head[1..17]).ok()?;
        let generation = u32::from_be_bytes(head[17..].try_into().ok()?);
        (head[0] == self.number).then(|| (GrantId::from(grant.to_string()), generation.into()))
    }

    /// Returns whether `token` is the [`ServerSecret::form_token`] of this cookie and purpose.
    pub fn accepts_form(&self, token: &str, cookie: &str, purpose: &str) -> bool {
        equal(
            token.as_bytes(),
            self.form_token(cookie, purpose).as_bytes(),
        )
    }

    /// Returns the seal of an audit row: the number of this secret, and a MAC over the row, its position in the chain and
    /// the previous seal.
    pub fn audit_seal(&self, seq: i64, previous: &[u8], row: &audit::Row) -> Vec<u8> {
        let mut context = hmac::Context::with_key(&self.audit);
        context.update(&seq.to_be_bytes());
        context.update(&(previous.len() as u64).to_be_bytes());
        context.update(previous);
        context.update(&row.bytes());
        let mut seal = vec![self.number];
        seal.extend_from_slice(context.sign().as_ref());
        seal
    }

    /// Returns the pseudonym of a user in the log. Without the secret, names cannot be recovered or tested.
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

impl SealedSecret {
    /// Returns this row sealed again under the first KEK, with the same secret.
    ///
    /// # Errors
    /// [`KeyError::UnknownKek`], [`KeyError::Corrupt`].
    pub fn resealed(&self, keychain: &Keychain, entropy: &Entropy) -> Result<Self, KeyError> {
        let root = keychain.open(&row(self), &self.sealed)?;
        let sealed = keychain.seal(&row(self), &root, entropy)?;
        if *keychain.open(&row(self), &sealed)? != *root {
            return Err(KeyError::Corrupt(format!("server_secrets {}", self.id)));
        }
        Ok(Self {
            sealed,
            ..self.clone()
        })
    }
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
