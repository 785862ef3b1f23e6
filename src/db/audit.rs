//! `audit_events`: insert-only.

use diesel::{ExpressionMethods, RunQueryDsl};

use super::schema::audit_events as t;
use super::{Error, Transaction};
use crate::audit::Event;

impl Transaction<'_> {
    /// Writes an audit event.
    ///
    /// # Errors
    /// [`Error`]; then the change must not happen either.
    pub fn put_audit(&mut self, event: &Event) -> Result<(), Error> {
        // Ordered by time; the random part is the row's own and guards nothing.
        let id = crate::id::uuid(&crate::secret::Entropy::system(), event.at);
        diesel::insert_into(t::table)
            .values((
                t::id.eq(id),
                t::at.eq(event.at.micros()),
                t::name.eq(event.name.as_str()),
                t::actor.eq(&event.actor),
                t::target.eq(&event.target),
                t::reason.eq(&event.reason),
                t::detail.eq(event.detail.to_string()),
            ))
            .execute(self.0)?;
        Ok(())
    }
}
