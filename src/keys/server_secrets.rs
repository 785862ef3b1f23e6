//! All server secrets: the newest makes, all check. An old one checks nothing that began more than a
//! minute after its successor was made, so a stolen one is worth nothing for what comes later.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::error::KeyError;
use super::seal::Keychain;
use super::server_secret::{SealedSecret, ServerSecret};
use crate::audit;
use crate::config::limits::{LONGEST_FORM, SECRET_CHANGE_SEEN};
use crate::id::GrantId;
use crate::secret::{Secret, equal};
use crate::time::Timestamp;

/// The server secrets in force; replaced as a whole when rows change.
pub struct ServerSecrets(ArcSwap<SecretEntry>);

struct SecretEntry {
    newest: Arc<ServerSecret>,
    older: Vec<Older>,
}

struct Older {
    secret: ServerSecret,
    /// What began later than this it does not check.
    until: Timestamp,
    /// Forms carry no time of their own: it checks them while any may be left.
    forms: bool,
}

impl ServerSecrets {
    /// Opens the rows, the oldest first.
    ///
    /// # Errors
    /// [`KeyError::UnknownKek`], [`KeyError::Corrupt`]: without the newest nothing can be made.
    pub fn open(
        rows: &[SealedSecret],
        keychain: &Keychain,
        now: Timestamp,
    ) -> Result<Self, KeyError> {
        SecretEntry::open(rows, keychain, now).map(|held| Self(ArcSwap::from_pointee(held)))
    }

    /// Takes the rows as they are now.
    ///
    /// # Errors
    /// As [`ServerSecrets::open`]; then all stays as it was.
    pub fn replace(
        &self,
        rows: &[SealedSecret],
        keychain: &Keychain,
        now: Timestamp,
    ) -> Result<(), KeyError> {
        self.0
            .store(Arc::new(SecretEntry::open(rows, keychain, now)?));
        Ok(())
    }

    /// The one that makes.
    pub fn newest(&self) -> Arc<ServerSecret> {
        Arc::clone(&self.0.load().newest)
    }

    /// The token of a form; see [`ServerSecret::form_token`].
    pub fn form_token(&self, cookie: &str, purpose: &str) -> String {
        self.0.load().newest.form_token(cookie, purpose)
    }

    /// Whether `token` is the form token of this cookie and purpose.
    pub fn accepts_form(&self, token: &str, cookie: &str, purpose: &str) -> bool {
        let held = self.0.load();
        let older = held.older.iter().filter(|older| older.forms);
        std::iter::once(&*held.newest)
            .chain(older.map(|older| &older.secret))
            .any(|secret| secret.accepts_form(token, cookie, purpose))
    }

    /// The refresh token of a grant's generation; see [`ServerSecret::refresh_token`].
    pub fn refresh_token(&self, grant: &GrantId, generation: i64) -> Secret {
        self.0.load().newest.refresh_token(grant, generation)
    }

    /// Grant and generation of a refresh token of ours.
    pub fn read_refresh_token(&self, token: &str) -> Option<(GrantId, i64)> {
        let held = self.0.load();
        held.newest.read_refresh_token(token).or_else(|| {
            held.older.iter().find_map(|older| {
                let (grant, generation) = older.secret.read_refresh_token(token)?;
                (grant.made_at()? <= older.until).then_some((grant, generation))
            })
        })
    }

    /// The seal of an audit row; see [`ServerSecret::audit_seal`].
    pub fn audit_seal(&self, seq: i64, previous: &[u8], row: &audit::Row) -> Vec<u8> {
        self.0.load().newest.audit_seal(seq, previous, row)
    }

    /// Whether `seal` is the seal of an audit row, by the newest secret or by one of its time.
    pub fn accepts_seal(&self, seal: &[u8], seq: i64, previous: &[u8], row: &audit::Row) -> bool {
        let held = self.0.load();
        let older = held.older.iter().filter(|older| row.at <= older.until);
        std::iter::once(&*held.newest)
            .chain(older.map(|older| &older.secret))
            .any(|secret| equal(&secret.audit_seal(seq, previous, row), seal))
    }

    /// What the log calls a person.
    pub fn user_ref(&self, username: &str) -> String {
        self.0.load().newest.user_ref(username)
    }
}

impl SecretEntry {
    fn open(rows: &[SealedSecret], keychain: &Keychain, now: Timestamp) -> Result<Self, KeyError> {
        let Some((newest, before)) = rows.split_last() else {
            return Err(KeyError::Corrupt(
                "server_secrets, which is empty,".to_owned(),
            ));
        };
        let mut older = Vec::new();
        for (row, successor) in before.iter().zip(&rows[1..]) {
            let until = successor.created_at + SECRET_CHANGE_SEEN;
            match ServerSecret::open(row, keychain) {
                Ok(secret) => older.push(Older {
                    secret,
                    until,
                    forms: now <= until + LONGEST_FORM,
                }),
                Err(error) => {
                    tracing::error!(event = "key.corrupt", reason = "unusable", severity = "critical", %error, "an old server secret is left out");
                }
            }
        }
        Ok(Self {
            newest: Arc::new(ServerSecret::open(newest, keychain)?),
            older,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Kek;
    use super::*;
    use crate::secret::Entropy;

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_secs(1_800_000_000 + secs)
    }

    #[test]
    fn an_old_secret_checks_what_began_before_its_successor_was_known_everywhere() {
        let entropy = Entropy::seeded(1);
        let keychain = Keychain::new(vec![
            Kek::from_base64(&Kek::generate(&entropy), "test").unwrap(),
        ])
        .unwrap();
        let first = ServerSecret::generate(1, &keychain, &entropy, at(0)).unwrap();
        let second = ServerSecret::generate(2, &keychain, &entropy, at(1_000)).unwrap();
        let old = ServerSecret::open(&first, &keychain).unwrap();
        let both = ServerSecrets::open(&[first, second], &keychain, at(1_001)).unwrap();
        for (began, accepted) in [(10, true), (1_060, true), (1_061, false)] {
            let grant = GrantId::new(&entropy, at(began));
            let token = old.refresh_token(&grant, 3);
            let read = both.read_refresh_token(token.expose());
            assert_eq!(read, accepted.then_some((grant.clone(), 3)), "{began}");
            let new = both.refresh_token(&grant, 3);
            assert_ne!(new.expose(), token.expose());
            assert_eq!(both.read_refresh_token(new.expose()), Some((grant, 3)));
        }
        let form = old.form_token("cookie", "login");
        assert!(both.accepts_form(&form, "cookie", "login"));
        assert!(both.accepts_form(&both.form_token("cookie", "login"), "cookie", "login"));
        assert!(!both.accepts_form(&form, "other", "login"));
    }

    #[test]
    fn an_old_form_ends_when_none_can_be_left() {
        let entropy = Entropy::seeded(1);
        let keychain = Keychain::new(vec![
            Kek::from_base64(&Kek::generate(&entropy), "test").unwrap(),
        ])
        .unwrap();
        let first = ServerSecret::generate(1, &keychain, &entropy, at(0)).unwrap();
        let second = ServerSecret::generate(2, &keychain, &entropy, at(10)).unwrap();
        let form = ServerSecret::open(&first, &keychain)
            .unwrap()
            .form_token("cookie", "login");
        let rows = [first, second];
        let secrets = ServerSecrets::open(&rows, &keychain, at(11)).unwrap();
        assert!(secrets.accepts_form(&form, "cookie", "login"));
        let later = at(10) + SECRET_CHANGE_SEEN + LONGEST_FORM + Duration::from_secs(1);
        secrets.replace(&rows, &keychain, later).unwrap();
        assert!(!secrets.accepts_form(&form, "cookie", "login"));
    }
}
