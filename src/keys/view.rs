//! What a node holds of its keys: the signer of each ring, and each JWKS as ready bytes
//! (RFC 7517 §5). Built from the rows, swapped as a whole.

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

/// A set of public keys, serialised once.
pub struct Published {
    /// The set.
    pub set: JwkSet,
    /// Its bytes.
    pub bytes: Bytes,
    /// Strong entity tag of the bytes, with its quotes.
    pub etag: String,
}

/// The keys as a node knows them at one instant.
pub struct KeyView {
    signers: HashMap<Ring, Signer>,
    token: Published,
    feed: Published,
    /// Out of the JWKS, and still able to say whom an old ID token was about.
    archived: Vec<Jwk>,
    held: HashMap<String, KeyEntry>,
    /// Kids that never count again, whatever the table says later.
    dead: HashSet<String>,
    corrupt: BTreeMap<String, (Ring, String)>,
    built_at: Timestamp,
    next_change: Option<Timestamp>,
}

struct Signer {
    kid: String,
    key: EncodingKey,
    // The provider finds the parsed key by kid for as long as somebody holds it.
    _parsed: Arc<Parsed>,
}

/// A row as it was when it last opened.
#[derive(Clone)]
struct KeyEntry {
    row: SigningKey,
    opened: Opened,
}

impl KeyView {
    /// Builds the view at `now`. A row that does not open is left out, never published and never
    /// signs; if `last` holds a good copy of it, that one goes on. Nothing brings back a key whose
    /// row says that it is revoked, or whose kid stands in `blocked`.
    ///
    /// # Errors
    /// [`KeyError::Generate`] if the set cannot be serialised, which it always can.
    pub fn build(
        rows: &[SigningKey],
        blocked: &HashSet<String>,
        keychain: &Keychain,
        last: Option<&Self>,
        now: Timestamp,
    ) -> Result<Self, KeyError> {
        let mut held = HashMap::new();
        let mut corrupt = BTreeMap::new();
        let mut dead = last.map(|last| last.dead.clone()).unwrap_or_default();
        dead.extend(blocked.iter().cloned());
        let revoked = rows.iter().filter(|row| row.revoked_at.is_some());
        dead.extend(revoked.map(|row| row.kid.clone()));
        for row in rows {
            let dead = dead.contains(&row.kid);
            match row.open(keychain) {
                Ok(opened) if !dead => {
                    let row = row.clone();
                    held.insert(row.kid.clone(), KeyEntry { row, opened });
                }
                Ok(_) => {}
                Err(error) => {
                    corrupt.insert(row.kid.clone(), (row.ring(), error.to_string()));
                    if let Some(good) = last.and_then(|last| last.held.get(&row.kid))
                        && !dead
                    {
                        held.insert(row.kid.clone(), good.clone());
                    }
                }
            }
        }
        let mut standing: Vec<&KeyEntry> = held.values().collect();
        // The newest first; the order is part of the entity tag.
        standing.sort_by_key(|held| {
            let row = &held.row;
            (row.use_, row.alg.name(), std::cmp::Reverse(row.generation))
        });
        let shown = |use_| {
            standing
                .iter()
                .filter(|held| held.row.use_ == use_ && in_jwks(state(&held.row, now)))
                .map(|held| held.opened.public.clone())
                .collect()
        };
        let archived = |held: &&&KeyEntry| {
            held.row.use_ == Use::Token && state(&held.row, now) == State::Archived
        };
        Ok(Self {
            signers: signers(&standing, now),
            token: Published::of(shown(Use::Token))?,
            feed: Published::of(shown(Use::Feed))?,
            archived: standing
                .iter()
                .filter(archived)
                .map(|held| held.opened.public.clone())
                .collect(),
            built_at: now,
            next_change: next_change(standing.iter().map(|held| &held.row), now),
            held,
            dead,
            corrupt,
        })
    }

    /// Signs `claims` as a compact JWS (RFC 7515 §3.1) with the signer of the token ring.
    ///
    /// # Errors
    /// [`KeyError::NoSigner`], [`KeyError::Sign`].
    pub fn sign(&self, alg: Alg, typ: &str, claims: &impl Serialize) -> Result<String, KeyError> {
        self.sign_with(Ring::token(alg), typ, claims)
    }

    /// Signs a frame of the revocation feed. Verifiers of tokens never hold this key.
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

    /// The frame of a JWS that a published feed key of ours signed for `issuer`, whatever its age.
    pub fn read_frame(&self, jws: &str, issuer: &str) -> Option<Frame> {
        let header = jsonwebtoken::decode_header(jws).ok()?;
        if header.typ.as_deref() != Some(FRAME_TYP) || header.crit.is_some() {
            return None;
        }
        let kid = header.kid?;
        let mut known = self.feed.set.keys.iter();
        let jwk = known.find(|jwk| jwk.kid.as_ref() == Some(&kid))?;
        let frame: Frame = signed_claims(jws, jwk)?;
        (frame.iss == issuer).then_some(frame)
    }

    /// The published keys of a use.
    pub fn published(&self, use_: Use) -> &Published {
        match use_ {
            Use::Token => &self.token,
            Use::Feed => &self.feed,
        }
    }

    /// The claims of a token that a key of ours signed, whatever its expiry; `None` unless its type is
    /// `typ`. For hints: who was this about? So keys that left the JWKS count, revoked ones never.
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
        let known = self.token.set.keys.iter().chain(&self.archived);
        let jwk = known
            .into_iter()
            .find(|jwk| jwk.kid.as_ref() == Some(&kid))?;
        signed_claims(token, jwk)
    }

    /// Whether each of these rings has a signer.
    pub fn can_sign(&self, rings: &[Ring]) -> bool {
        rings.iter().all(|ring| self.signers.contains_key(ring))
    }

    /// The kid of a ring's signer.
    pub fn signer(&self, ring: Ring) -> Option<&str> {
        self.signers.get(&ring).map(|signer| signer.kid.as_str())
    }

    /// When it was built.
    pub fn built_at(&self) -> Timestamp {
        self.built_at
    }

    /// When the state of a key changes by itself: then a new view is due.
    pub fn next_change(&self) -> Option<Timestamp> {
        self.next_change
    }

    /// The rows that do not open: kid, ring and reason.
    pub fn corrupt(&self) -> &BTreeMap<String, (Ring, String)> {
        &self.corrupt
    }

    /// How many rows of a ring do not open.
    pub fn corrupt_in(&self, ring: Ring) -> usize {
        let of_ring = |(other, _): &&(Ring, String)| *other == ring;
        self.corrupt.values().filter(of_ring).count()
    }

    /// The keys that count: they opened, and are not revoked.
    pub fn rows(&self) -> impl Iterator<Item = &SigningKey> {
        self.held.values().map(|held| &held.row)
    }
}

fn signers(standing: &[&KeyEntry], now: Timestamp) -> HashMap<Ring, Signer> {
    let mut signers = HashMap::new();
    let able: Vec<&&KeyEntry> = standing
        .iter()
        .filter(|held| held.opened.private.is_some())
        .collect();
    for held in &able {
        let ring = held.row.ring();
        let best = signer(ring.among(able.iter().map(|held| &held.row)), now);
        if best.is_some_and(|best| best.kid == held.row.kid)
            && let Some(parsed) = &held.opened.private
        {
            let kid = held.row.kid.clone();
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
