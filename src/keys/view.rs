//! The keys of a node: the signer of each ring, and each JWKS (RFC 7517 §5) as serialised bytes. Built from the rows and
//! replaced as a whole.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use jsonwebtoken::{EncodingKey, Header};
use portcullis_verifier::{FRAME_TYP, Frame, Jwk, JwkSet};
use serde::Serialize;

use super::decoding::{jwt_algorithm, signed_claims};
use super::error::KeyError;
use super::provider::Parsed;
use super::ring::{Alg, Ring, Use};
use super::rotation::{State, in_jwks, next_change, signer, state};
use super::seal::Keychain;
use super::signing_key::{Opened, SigningKey};
use crate::secret::{base64url, sha256};
use crate::time::Timestamp;

/// A set of public keys and its serialised form.
pub struct Published {
    /// The set.
    pub set: JwkSet,
    /// The serialised set.
    pub bytes: Bytes,
    /// The strong entity tag of the bytes, with quotes.
    pub etag: String,
}

/// The keys of a node at one instant.
pub struct KeyView {
    signers: HashMap<Ring, Signer>,
    token: Published,
    feed: Published,
    /// No longer in the JWKS, but still used to read old ID tokens as hints.
    archived: Vec<Jwk>,
    usable: HashMap<String, KeyEntry>,
    /// Kids that are never used again, whatever the table contains later.
    revoked: HashSet<String>,
    corrupt: BTreeMap<String, (Ring, String)>,
    built_at: Timestamp,
    next_change: Option<Timestamp>,
}

struct Signer {
    kid: String,
    key: EncodingKey,
    // The provider finds the parsed key by its kid while an `Arc` exists.
    _parsed: Arc<Parsed>,
}

/// A row that opened.
#[derive(Clone)]
struct KeyEntry {
    row: SigningKey,
    opened: Opened,
}

impl KeyView {
    /// Builds the view at `now`. A row that does not open is neither published nor used, unless `last` contains an
    /// opened copy, which stays in use. A key stays revoked if its row once said so, or if its kid is in `blocked`.
    ///
    /// # Errors
    /// [`KeyError::Generate`] if the set cannot be serialised, which is not expected.
    pub fn build(
        rows: &[SigningKey],
        blocked: &HashSet<String>,
        keychain: &Keychain,
        last: Option<&Self>,
        now: Timestamp,
    ) -> Result<Self, KeyError> {
        let mut usable = HashMap::new();
        let mut corrupt = BTreeMap::new();
        let mut revoked = last.map(|last| last.revoked.clone()).unwrap_or_default();
        revoked.extend(blocked.iter().cloned());
        let revoked_rows = rows.iter().filter(|row| row.revoked_at.is_some());
        revoked.extend(revoked_rows.map(|row| row.kid.clone()));
        for row in rows {
            let is_revoked = revoked.contains(&row.kid);
            match row.open(keychain) {
                Ok(opened) if !is_revoked => {
                    let row = row.clone();
                    usable.insert(row.kid.clone(), KeyEntry { row, opened });
                }
                Ok(_) => {}
                Err(error) => {
                    corrupt.insert(row.kid.clone(), (row.ring(), error.to_string()));
                    if let Some(entry) = last.and_then(|last| last.usable.get(&row.kid))
                        && !is_revoked
                    {
                        usable.insert(row.kid.clone(), entry.clone());
                    }
                }
            }
        }
        let mut entries: Vec<&KeyEntry> = usable.values().collect();
        // The newest key is first. The entity tag depends on the order.
        entries.sort_by_key(|entry| {
            let row = &entry.row;
            (row.use_, row.alg.name(), std::cmp::Reverse(row.generation))
        });
        let published = |use_| {
            entries
                .iter()
                .filter(|entry| entry.row.use_ == use_ && in_jwks(state(&entry.row, now)))
                .map(|entry| entry.opened.public.clone())
                .collect()
        };
        let archived = |entry: &&&KeyEntry| {
            entry.row.use_ == Use::Token && state(&entry.row, now) == State::Archived
        };
        Ok(Self {
            signers: signers(&entries, now),
            token: Published::of(published(Use::Token))?,
            feed: Published::of(published(Use::Feed))?,
            archived: entries
                .iter()
                .filter(archived)
                .map(|entry| entry.opened.public.clone())
                .collect(),
            built_at: now,
            next_change: next_change(entries.iter().map(|entry| &entry.row), now),
            usable,
            revoked,
            corrupt,
        })
    }

    /// Signs `claims` as a compact JWS (RFC 7515 §3.1) with the signer of a token ring.
    ///
    /// # Errors
    /// [`KeyError::NoSigner`], [`KeyError::Sign`].
    pub fn sign(&self, alg: Alg, typ: &str, claims: &impl Serialize) -> Result<String, KeyError> {
        self.sign_with(Ring::token(alg), typ, claims)
    }

    /// Signs a frame of the revocation feed. Its keys are not in the JWKS for tokens.
    ///
    /// # Errors
    /// [`KeyError::NoSigner`], [`KeyError::Sign`].
    pub fn sign_frame(&self, typ: &str, claims: &impl Serialize) -> Result<String, KeyError> {
        self.sign_with(Ring::FEED, typ, claims)
    }

    fn sign_with(
        &self,
        ring: Ring,
        typ: &str,
        claims: &impl Serialize,
    ) -> Result<String, KeyError> {
        let signer = self.signers.get(&ring).ok_or(KeyError::NoSigner(ring))?;
        let header = Header {
            typ: Some(typ.to_owned()),
            kid: Some(signer.kid.clone()),
            ..Header::new(jwt_algorithm(ring.alg))
        };
        Ok(jsonwebtoken::encode(&header, claims, &signer.key)?)
    }

    /// Returns the frame of a JWS that a published feed key signed for `issuer`, whatever its age.
    pub fn read_frame(&self, jws: &str, issuer: &str) -> Option<Frame> {
        let header = jsonwebtoken::decode_header(jws).ok()?;
        if header.typ.as_deref() != Some(FRAME_TYP) || header.crit.is_some() {
            return None;
        }
        let kid = header.kid?;
        let mut keys = self.feed.set.keys.iter();
        let jwk = keys.find(|jwk| jwk.kid.as_ref() == Some(&kid))?;
        let frame: Frame = signed_claims(jws, jwk)?;
        (frame.iss == issuer).then_some(frame)
    }

    /// Returns the published keys of a use.
    pub fn published(&self, use_: Use) -> &Published {
        match use_ {
            Use::Token => &self.token,
            Use::Feed => &self.feed,
        }
    }

    /// Returns the claims of a token of this server, for hints. Expiry is ignored, and keys that are no longer in the
    /// JWKS are accepted; revoked keys are not. `None` if the type is not `typ`.
    pub fn verify(
        &self,
        token: &str,
        typ: &str,
    ) -> Option<serde_json::Map<String, serde_json::Value>> {
        let header = jsonwebtoken::decode_header(token).ok()?;
        if header.typ.as_deref() != Some(typ) || header.crit.is_some() {
            return None;
        }
        let kid = header.kid?;
        let mut keys = self.token.set.keys.iter().chain(&self.archived);
        let jwk = keys.find(|jwk| jwk.kid.as_ref() == Some(&kid))?;
        signed_claims(token, jwk)
    }

    /// Returns whether each of these rings has a signer.
    pub fn can_sign(&self, rings: &[Ring]) -> bool {
        rings.iter().all(|ring| self.signers.contains_key(ring))
    }

    /// Returns the kid of the signer of a ring.
    pub fn signer(&self, ring: Ring) -> Option<&str> {
        self.signers.get(&ring).map(|signer| signer.kid.as_str())
    }

    /// Returns when the view was built.
    pub fn built_at(&self) -> Timestamp {
        self.built_at
    }

    /// Returns when a key changes its state, so that a new view must be built.
    pub fn next_change(&self) -> Option<Timestamp> {
        self.next_change
    }

    /// Returns, by kid, the ring of each row that does not open and the reason.
    pub fn corrupt(&self) -> &BTreeMap<String, (Ring, String)> {
        &self.corrupt
    }

    /// Returns how many rows of a ring do not open.
    pub fn corrupt_in(&self, ring: Ring) -> usize {
        let of_ring = |(other, _): &&(Ring, String)| *other == ring;
        self.corrupt.values().filter(of_ring).count()
    }

    /// Returns the usable keys: they opened and are not revoked.
    pub fn rows(&self) -> impl Iterator<Item = &SigningKey> {
        self.usable.values().map(|entry| &entry.row)
    }
}

fn signers(entries: &[&KeyEntry], now: Timestamp) -> HashMap<Ring, Signer> {
    let mut signers = HashMap::new();
    let with_private_key: Vec<&&KeyEntry> = entries
        .iter()
        .filter(|entry| entry.opened.private.is_some())
        .collect();
    for entry in &with_private_key {
        let ring = entry.row.ring();
        let rows = with_private_key.iter().map(|entry| &entry.row);
        let best = signer(ring.among(rows), now);
        if best.is_some_and(|best| best.kid == entry.row.kid)
            && let Some(parsed) = &entry.opened.private
        {
            let kid = entry.row.kid.clone();
            let key = parsed.encoding_key(&kid);
            let _parsed = Arc::clone(parsed);
            signers.insert(ring, Signer { kid, key, _parsed });
        }
    }
    signers
}

impl Published {
    fn of(keys: Vec<Jwk>) -> Result<Self, KeyError> {
        let set = JwkSet { keys };
        let bytes =
            Bytes::from(serde_json::to_vec(&set).map_err(|e| KeyError::Generate(e.to_string()))?);
        let etag = format!("\"{}\"", base64url(&sha256(&bytes)[..16]));
        Ok(Self { set, bytes, etag })
    }
}
