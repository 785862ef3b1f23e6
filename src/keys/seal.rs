//! Sealed values: `v1.<kek_id>.<nonce>.<ciphertext>`, AES-256-GCM under a key derived from a key-encrypting key (KEK).
//! Every other column of the row is associated data. Therefore an attacker who can only write to the database can
//! neither move a value to another row nor change a column.

use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::error::KeyError;
use crate::secret::{Entropy, base64url, from_base64url, sha256};

/// A secret in plain text, wiped when dropped.
pub type Unsealed = Zeroizing<Vec<u8>>;

/// One key-encrypting key.
pub struct Kek {
    id: String,
    key: LessSafeKey,
}

impl Kek {
    /// Parses 32 bytes in base64. `source` names the key in errors.
    ///
    /// # Errors
    /// [`KeyError::Kek`] if the text is not 32 bytes in base64.
    pub fn from_base64(text: &str, source: &str) -> Result<Self, KeyError> {
        let bytes = STANDARD
            .decode(text.trim())
            .ok()
            .filter(|bytes| bytes.len() == 32)
            .map(Zeroizing::new)
            .ok_or_else(|| {
                KeyError::Kek(format!(
                    "the key-encrypting key of {source} is not 32 bytes in base64"
                ))
            })?;
        let broken =
            |_| KeyError::Kek(format!("the key-encrypting key of {source} cannot be used"));
        let mut derived = Zeroizing::new([0u8; 32]);
        hkdf::Salt::new(hkdf::HKDF_SHA256, b"portcullis")
            .extract(&bytes)
            .expand(&[b"seal"], hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(derived.as_mut()))
            .map_err(broken)?;
        let key = UnboundKey::new(&AES_256_GCM, derived.as_ref()).map_err(broken)?;
        let mut labelled = b"portcullis kek id".to_vec();
        labelled.extend_from_slice(&bytes);
        let digest = Zeroizing::new(sha256(&labelled));
        labelled.fill(0);
        Ok(Self {
            id: digest[..8].iter().map(|b| format!("{b:02x}")).collect(),
            key: LessSafeKey::new(key),
        })
    }

    /// Generates a KEK in the form of its file.
    pub fn generate(entropy: &Entropy) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(entropy.bytes::<32>()))
    }

    /// Returns the id of the KEK: 16 hexadecimal digits that reveal nothing about the key.
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// The configured KEKs. The first one seals; all of them open.
pub struct Keychain(Vec<Kek>);

impl Keychain {
    /// Creates a keychain.
    ///
    /// # Errors
    /// [`KeyError::Kek`] if there is no KEK.
    pub fn new(keks: Vec<Kek>) -> Result<Self, KeyError> {
        if keks.is_empty() {
            return Err(KeyError::Kek(
                "no key-encrypting key is configured".to_owned(),
            ));
        }
        Ok(Self(keks))
    }

    /// Reads all KEKs of `keys.kek`.
    ///
    /// # Errors
    /// [`KeyError::Kek`], which names the source that cannot be read.
    pub fn read(sources: &[String]) -> Result<Self, KeyError> {
        Self::new(
            sources
                .iter()
                .map(|source| read(source))
                .collect::<Result<_, _>>()?,
        )
    }

    /// Returns the id of the KEK that seals.
    pub fn first(&self) -> &str {
        self.0.first().map_or("", Kek::id)
    }

    /// Returns whether a KEK with this id is configured.
    pub fn knows(&self, kek: &str) -> bool {
        self.0.iter().any(|configured| configured.id == kek)
    }

    /// Seals `plain` for a row.
    ///
    /// # Errors
    /// [`KeyError::Generate`] if the cipher fails, which is not expected.
    pub fn seal(&self, row: &Row<'_>, plain: &[u8], entropy: &Entropy) -> Result<String, KeyError> {
        let kek = &self.0[0];
        let nonce: [u8; 12] = entropy.bytes();
        let mut bytes = plain.to_vec();
        kek.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(row.aad()),
                &mut bytes,
            )
            .map_err(|_| KeyError::Generate("sealing".to_owned()))?;
        Ok(format!(
            "v1.{}.{}.{}",
            kek.id,
            base64url(&nonce),
            base64url(&bytes)
        ))
    }

    /// Opens a value that [`Keychain::seal`] sealed for the same row.
    ///
    /// # Errors
    /// [`KeyError::UnknownKek`] or [`KeyError::Corrupt`], which name the row.
    pub fn open(&self, row: &Row<'_>, sealed: &str) -> Result<Unsealed, KeyError> {
        let corrupt = || KeyError::Corrupt(row.name());
        let mut parts = sealed.split('.');
        let (Some("v1"), Some(kek), Some(nonce), Some(cipher), None) = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ) else {
            return Err(corrupt());
        };
        let Some(kek) = self.0.iter().find(|k| k.id == kek) else {
            return Err(KeyError::UnknownKek {
                what: row.name(),
                kek: kek.to_owned(),
            });
        };
        let nonce: [u8; 12] = from_base64url(nonce)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(corrupt)?;
        let mut bytes = from_base64url(cipher)
            .map(Zeroizing::new)
            .ok_or_else(corrupt)?;
        let length = kek
            .key
            .open_in_place(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(row.aad()),
                &mut bytes,
            )
            .map_err(|_| corrupt())?
            .len();
        bytes.truncate(length);
        Ok(bytes)
    }
}

/// Returns the id of the KEK of a sealed value. Empty if `sealed` is not a sealed value.
pub fn kek_id(sealed: &str) -> String {
    let id = sealed
        .strip_prefix("v1.")
        .and_then(|rest| rest.split('.').next());
    id.unwrap_or_default().to_owned()
}

/// The row of a sealed value: the table and all other columns, in order.
pub struct Row<'a> {
    /// Table.
    pub table: &'a str,
    /// Primary key, which is the first column and names the row in messages.
    pub key: &'a str,
    /// The other columns as text. `None` is NULL, which differs from an empty text.
    pub columns: Vec<Option<String>>,
}

impl Row<'_> {
    fn name(&self) -> String {
        format!("{} {}", self.table, self.key)
    }

    fn aad(&self) -> Vec<u8> {
        let fixed = ["portcullis", self.table, self.key].map(Some);
        let others = self.columns.iter().map(Option::as_deref);
        let mut aad = Vec::new();
        for column in fixed.into_iter().chain(others) {
            match column {
                None => aad.push(0),
                Some(text) => {
                    aad.push(1);
                    aad.extend_from_slice(&(text.len() as u64).to_be_bytes());
                    aad.extend_from_slice(text.as_bytes());
                }
            }
        }
        aad
    }
}

fn read(source: &str) -> Result<Kek, KeyError> {
    let (kind, name) = source.split_once(':').unwrap_or(("", source));
    let missing = |why: String| {
        KeyError::Kek(format!(
            "the key-encrypting key {source} cannot be read: {why}; create one with `portcullis keys generate-kek --out FILE`"
        ))
    };
    let text = match kind {
        "file" => crate::config::read_secret_file(Path::new(name)).map_err(missing)?,
        "credential" => {
            let folder = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
                missing("the variable CREDENTIALS_DIRECTORY of systemd is not set".to_owned())
            })?;
            let path = PathBuf::from(folder).join(name);
            std::fs::read_to_string(path).map_err(|error| missing(error.to_string()))?
        }
        _ => std::env::var(name).map_err(|_| missing("the variable is not set".to_owned()))?,
    };
    Kek::from_base64(&text, source)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kek(seed: u64) -> Kek {
        Kek::from_base64(&Kek::generate(&Entropy::seeded(seed)), "test").unwrap()
    }

    fn row(column: Option<&str>) -> Row<'static> {
        Row {
            table: "signing_keys",
            key: "k1",
            columns: vec![column.map(str::to_owned)],
        }
    }

    #[test]
    fn sealed_value_opens_only_in_its_own_row() {
        let entropy = Entropy::seeded(3);
        let chain = Keychain::new(vec![kek(1)]).unwrap();
        let sealed = chain.seal(&row(Some("a")), b"private", &entropy).unwrap();
        assert_eq!(
            chain.open(&row(Some("a")), &sealed).unwrap().as_slice(),
            b"private"
        );
        for other in [Some("b"), Some(""), None] {
            assert!(matches!(
                chain.open(&row(other), &sealed),
                Err(KeyError::Corrupt(_))
            ));
        }
        let mut flipped = sealed.into_bytes();
        let last = flipped.len() - 2;
        flipped[last] = if flipped[last] == b'A' { b'B' } else { b'A' };
        let flipped = String::from_utf8(flipped).unwrap();
        assert!(matches!(
            chain.open(&row(Some("a")), &flipped),
            Err(KeyError::Corrupt(_))
        ));
    }

    #[test]
    fn every_configured_kek_opens_and_the_first_seals() {
        let entropy = Entropy::seeded(3);
        let old = Keychain::new(vec![kek(1)]).unwrap();
        let sealed = old.seal(&row(None), b"x", &entropy).unwrap();
        let both = Keychain::new(vec![kek(2), kek(1)]).unwrap();
        assert!(both.open(&row(None), &sealed).is_ok());
        assert!(
            both.seal(&row(None), b"x", &entropy)
                .unwrap()
                .contains(kek(2).id())
        );
        let new = Keychain::new(vec![kek(2)]).unwrap();
        let error = new.open(&row(None), &sealed).unwrap_err().to_string();
        assert!(
            error.contains("signing_keys k1") && error.contains(kek(1).id()),
            "{error}"
        );
    }
}
