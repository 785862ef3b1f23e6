//! Implements the storage interface of the protocol.

use super::{Error, Transaction};
use crate::audit::{Actor, Event, RevocationReason};
use crate::id::{ClientId, GrantId};
use crate::oauth::Ledger;
use crate::oauth::code::Code;
use crate::oauth::grant::Grant;
use crate::secret::Hash;
use crate::time::Timestamp;

impl Ledger for Transaction<'_> {
    fn put_code(&mut self, code: &Code) -> Result<(), Error> {
        self.put_code(code)
    }

    fn put_grant(&mut self, grant: &Grant) -> Result<(), Error> {
        self.put_grant(grant)
    }

    fn take_code(&mut self, hash: &Hash, now: Timestamp) -> Result<Option<Code>, Error> {
        self.take_code(hash, now)
    }

    fn find_used_code(&mut self, hash: &Hash) -> Result<Option<Code>, Error> {
        self.find_used_code(hash)
    }

    fn has_code(&mut self, hash: &Hash) -> Result<bool, Error> {
        self.has_code(hash)
    }

    fn find_active_grant(&mut self, id: &GrantId, now: Timestamp) -> Result<Option<Grant>, Error> {
        self.find_active_grant(id, now)
    }

    fn rotate_grant(
        &mut self,
        id: &GrantId,
        generation: i64,
        client: &ClientId,
        idle_until: Timestamp,
        now: Timestamp,
    ) -> Result<Option<Grant>, Error> {
        self.rotate_grant(id, generation, client, idle_until, now)
    }

    fn is_expired(&mut self, id: &GrantId, now: Timestamp) -> Result<bool, Error> {
        self.is_expired(id, now)
    }

    fn revoke_grant(
        &mut self,
        id: &GrantId,
        reason: &RevocationReason,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<bool, Error> {
        self.revoke_grant(id, reason, actor, now)
    }

    fn revoke_surplus_grants(&mut self, new: &Grant, now: Timestamp) -> Result<(), Error> {
        self.revoke_surplus_grants(new, now)
    }

    fn undo(&mut self) {
        self.undo();
    }

    fn revoke_token(
        &mut self,
        jti: &str,
        expires_at: Timestamp,
        reason: &RevocationReason,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(), Error> {
        self.revoke_token(jti, expires_at, reason, actor, now)
    }

    fn put_audit(&mut self, event: &Event) -> Result<(), Error> {
        self.put_audit(event)
    }
}
