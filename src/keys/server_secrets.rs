//! All server secrets. The newest creates MACs; all of them verify. An older one verifies only values that were created
//! up to one minute after its successor was, so a stolen secret cannot forge later values.

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

/// The current server secrets, replaced as a whole when rows change.
pub struct ServerSecrets(ArcSwap<OpenedSecrets>);

struct OpenedSecrets {
    newest: Arc<ServerSecret>,
    older: Vec<Older>,
}

struct Older {
    secret: ServerSecret,
    /// It verifies only values that were created until this time.
    until: Timestamp,
    /// Whether it verifies forms. Forms have no time of creation, so this is `true` while one may still be open.
    forms: bool,
}

impl ServerSecrets {
    /// Opens the rows; the oldest is first.
    ///
    /// # Errors
    /// [`KeyError::UnknownKek`] or [`KeyError::Corrupt`] if the newest does not open.
    pub fn open(
        rows: &[SealedSecret],
        keychain: &Keychain,
        now: Timestamp,
    ) -> Result<Self, KeyError> {
        OpenedSecrets::open(rows, keychain, now).map(|secrets| Self(ArcSwap::from_pointee(secrets)))
    }

    /// Replaces the secrets with those of the current rows.
    ///
    /// # Errors
    /// As [`ServerSecrets::open`]. Then the secrets do not change.
    pub fn replace(
        &self,
        rows: &[SealedSecret],
        keychain: &Keychain,
        now: Timestamp,
    ) -> Result<(), KeyError> {
        self.0
            .store(Arc::new(OpenedSecrets::open(rows, keychain, now)?));
        Ok(())
    }

    /// Returns the secret used to create new MACs.
    pub fn newest(&self) -> Arc<ServerSecret> {
        Arc::clone(&self.0.load().newest)
    }

    /// Returns the CSRF token of a form; see [`ServerSecret::form_token`].
    pub fn form_token(&self, cookie: &str, purpose: &str) -> String {
        self.0.load().newest.form_token(cookie, purpose)
    }

    /// Returns whether `token` is the CSRF token of this cookie and purpose.
    pub fn accepts_form(&self, token: &str, cookie: &str, purpose: &str) -> bool {
        let secrets = self.0.load();
        let older = secrets.older.iter().filter(|older| older.forms);
        std::iter::once(&*secrets.newest)
            .chain(older.map(|older| &older.secret))
            .any(|secret| secret.accepts_form(token, cookie, purpose))
    }

    /// Returns the refresh token of a generation of a grant; see [`ServerSecret::refresh_token`].
    pub fn refresh_token(&self, grant: &GrantId, generation: i64) -> Secret {
        self.0.load().newest.refresh_token(grant, generation)
    }

    /// Returns grant and generation of a refresh token of this server.
    pub fn read_refresh_token(&self, token: &str) -> Option<(GrantId, i64)> {
        let secrets = self.0.load();
        secrets.newest.read_refresh_token(token).or_else(|| {
            secrets.older.iter().find_map(|older| {
                let (grant, generation) = older.secret.read_refresh_token(token)?;
                (grant.made_at()? <= older.until).then_some((grant, generation))
            })
        })
    }

    /// Returns the seal of an audit row; see [`ServerSecret::audit_seal`].
    pub fn audit_seal(&self, seq: i64, previous: &[u8], row: &audit::Row) -> Vec<u8> {
        self.0.load().newest.audit_seal(seq, previous, row)
    }

    /// Returns whether `seal` is the seal of an audit row by the newest secret, or by one that was valid at its time.
    pub fn accepts_seal(&self, seal: &[u8], seq: i64, previous: &[u8], row: &audit::Row) -> bool {
        let secrets = self.0.load();
        let older = secrets.older.iter().filter(|older| row.at <= older.until);
        std::iter::once(&*secrets.newest)
            .chain(older.map(|older| &older.secret))
            .any(|secret| equal(&secret.audit_seal(seq, previous, row), seal))
    }

    /// Returns the pseudonym of a user in the log.
    pub fn user_ref(&self, username: &str) -> String {
        self.0.load().newest.user_ref(username)
    }
}

impl OpenedSecrets {
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
                    tracing::error!(event = "key.corrupt", reason = "unusable", severity = "critical", %error, "an old server secret does not open and is ignored");
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
    fn older_secret_verifies_only_values_from_before_its_successor_was_known() {
        let entropy = Entropy::seeded(1);
        let keychain = Keychain::new(vec![
            Kek::from_base64(&Kek::generate(&entropy), "test").unwrap(),
        ])
        .unwrap();
        let first = ServerSecret::generate(1, &keychain, &entropy, at(0)).unwrap();
        let second = ServerSecret::generate(2, &keychain, &entropy, at(1_000)).unwrap();
        let old = ServerSecret::open(&first, &keychain).unwrap();
        let both = ServerSecrets::open(&[first, second], &keychain, at(1_001)).unwrap();
        for (created, accepted) in [(10, true), (1_060, true), (1_061, false)] {
            let grant = GrantId::new(&entropy, at(created));
            let token = old.refresh_token(&grant, 3);
            let read = both.read_refresh_token(token.expose());
            assert_eq!(read, accepted.then_some((grant.clone(), 3)), "{created}");
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
    fn older_secret_rejects_forms_after_their_lifetime() {
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
