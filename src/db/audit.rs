//! `audit_events`: insert-only. `audit_seals`: a chain of MACs over the events, which any node extends
//! after the commit. `audit_waiting`: events without a seal.

use std::collections::BTreeMap;
use std::time::Duration;

use diesel::{
    ExpressionMethods, JoinOnDsl, NullableExpressionMethods, OptionalExtension, QueryDsl,
    RunQueryDsl,
};

use super::schema::{audit_events as t, audit_seals as seals, audit_waiting as waiting};
use super::{Error, Transaction};
use crate::audit::{Actor, Event, KEPT, Name, Row, Target};
use crate::config::limits::CLEAN_UP_BATCH;
use crate::id::UserId;
use crate::keys::ServerSecrets;
use crate::secret::base64url;
use crate::time::Timestamp;

/// The maximum number of events that one transaction seals.
pub const SEALED_AT_ONCE: i64 = 200;
const DAY: Duration = Duration::from_secs(86_400);

type Columns = (String, i64, String, String, String, Option<String>, String);
type SealColumns = ((i64, String, Vec<u8>), Option<Columns>);

fn row((id, at, name, actor, target, reason, detail): Columns) -> Row {
    Row {
        id,
        at: Timestamp::from_micros(at),
        name,
        actor,
        target,
        reason,
        detail,
    }
}

/// A seal, with its event unless that was removed.
#[derive(Clone, Debug)]
pub struct Seal {
    /// Its number in the chain, from 1.
    pub seq: i64,
    /// The row id of its event.
    pub event_id: String,
    /// [`ServerSecrets::audit_seal`].
    pub mac: Vec<u8>,
    /// The event.
    pub row: Option<Row>,
}

impl Transaction<'_> {
    /// Returns the last sign-in of each user for which there is an event.
    ///
    /// # Errors
    /// [`Error`].
    pub fn last_sign_ins(&mut self) -> Result<BTreeMap<UserId, Timestamp>, Error> {
        let rows: Vec<(String, Option<i64>)> = t::table
            .filter(t::name.eq(Name::SessionBegun.as_str()))
            .group_by(t::actor)
            .select((t::actor, diesel::dsl::max(t::at)))
            .load(self.connection)?;
        let of_user = |(actor, at): (String, Option<i64>)| {
            let user = actor.strip_prefix("user:")?;
            Some((UserId::from(user.to_owned()), Timestamp::from_micros(at?)))
        };
        Ok(rows.into_iter().filter_map(of_user).collect())
    }

    /// Inserts an audit event.
    ///
    /// # Errors
    /// [`Error`]; then the change must be rolled back.
    pub fn put_audit(&mut self, event: &Event) -> Result<(), Error> {
        let id = crate::id::uuid(self.entropy, event.at);
        diesel::insert_into(t::table)
            .values((
                t::id.eq(&id),
                t::at.eq(event.at.micros()),
                t::name.eq(event.name.as_str()),
                t::actor.eq(event.actor.to_string()),
                t::target.eq(event.target.to_string()),
                t::reason.eq(&event.reason),
                t::detail.eq(event.detail.to_string()),
            ))
            .execute(self.connection)?;
        diesel::insert_into(waiting::table)
            .values(waiting::event_id.eq(&id))
            .execute(self.connection)?;
        Ok(())
    }

    /// Returns whether there is an event without a seal.
    ///
    /// # Errors
    /// [`Error`].
    pub fn has_unsealed_audit(&mut self) -> Result<bool, Error> {
        let found: Option<String> = waiting::table
            .select(waiting::event_id)
            .first(self.connection)
            .optional()?;
        Ok(found.is_some())
    }

    /// Seals at most [`SEALED_AT_ONCE`] events and returns them with their seals. Any node may do so: a
    /// seal is one INSERT with the next number, and a node that finds the number taken stops.
    ///
    /// # Errors
    /// [`Error`].
    pub fn seal_audit(&mut self, secret: &ServerSecrets) -> Result<Vec<Seal>, Error> {
        let rows: Vec<Columns> = t::table
            .inner_join(waiting::table.on(waiting::event_id.eq(t::id)))
            .order(t::id)
            .limit(SEALED_AT_ONCE)
            .select(t::all_columns)
            .load(self.connection)?;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let head: Option<(i64, Vec<u8>)> = seals::table
            .order(seals::seq.desc())
            .select((seals::seq, seals::mac))
            .first(self.connection)
            .optional()?;
        let (mut seq, mut previous) = head.unwrap_or_default();
        let mut sealed = Vec::new();
        for row in rows.into_iter().map(row) {
            seq += 1;
            let mac = secret.audit_seal(seq, &previous, &row);
            if !self.put_seal(seq, &row.id, &mac)? {
                break;
            }
            diesel::delete(waiting::table.find(&row.id)).execute(self.connection)?;
            previous.clone_from(&mac);
            sealed.push(Seal {
                seq,
                event_id: row.id.clone(),
                mac,
                row: Some(row),
            });
        }
        Ok(sealed)
    }

    /// Returns `false` if the number is taken or the event is sealed already.
    fn put_seal(&mut self, seq: i64, event_id: &str, mac: &[u8]) -> Result<bool, Error> {
        use diesel::sql_types::{BigInt, Binary, Text};
        let rows = diesel::sql_query(
            "INSERT INTO audit_seals (seq, event_id, mac) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        )
        .bind::<BigInt, _>(seq)
        .bind::<Text, _>(event_id)
        .bind::<Binary, _>(mac)
        .execute(self.connection)?;
        Ok(rows == 1)
    }

    /// Returns the seals after a number, in order, with their events.
    ///
    /// # Errors
    /// [`Error`].
    pub fn list_seals(&mut self, after: i64, limit: i64) -> Result<Vec<Seal>, Error> {
        let rows: Vec<SealColumns> = seals::table
            .left_join(t::table.on(t::id.eq(seals::event_id)))
            .filter(seals::seq.gt(after))
            .order(seals::seq)
            .limit(limit)
            .select((seals::all_columns, t::all_columns.nullable()))
            .load(self.connection)?;
        let seal = |((seq, event_id, mac), columns): SealColumns| Seal {
            seq,
            event_id,
            mac,
            row: columns.map(row),
        };
        Ok(rows.into_iter().map(seal).collect())
    }

    /// Returns the newest seal.
    ///
    /// # Errors
    /// [`Error`].
    pub fn last_seal(&mut self) -> Result<Option<Seal>, Error> {
        let last: Option<i64> = seals::table
            .select(diesel::dsl::max(seals::seq))
            .first(self.connection)?;
        match last {
            Some(last) => Ok(self.list_seals(last - 1, 1)?.pop()),
            None => Ok(None),
        }
    }

    /// Returns whether the chain continues a head that was seen earlier: the number of a seal, the seal in base64url
    /// and the time of its event. The clean-up or a recovery may have removed the head.
    ///
    /// # Errors
    /// [`Error`].
    pub fn continues_head(&mut self, seq: i64, seal: &str, at: Timestamp) -> Result<bool, Error> {
        Ok(self.has_seal(seq, seal)? || self.was_swept(seq)? || self.was_recovered_after(at)?)
    }

    fn has_seal(&mut self, seq: i64, seal: &str) -> Result<bool, Error> {
        let found: Option<Vec<u8>> = seals::table
            .find(seq)
            .select(seals::mac)
            .first(self.connection)
            .optional()?;
        Ok(found.is_some_and(|mac| base64url(&mac) == seal))
    }

    /// Returns whether the chain starts after this number. [`Transaction::sweep_audit`] records why.
    fn was_swept(&mut self, seq: i64) -> Result<bool, Error> {
        let first: Option<i64> = seals::table
            .select(diesel::dsl::min(seals::seq))
            .first(self.connection)?;
        Ok(first.is_some_and(|first| first > seq))
    }

    /// Returns whether a sealed event after an instant records a recovery, which begins from an older copy of
    /// the log.
    fn was_recovered_after(&mut self, at: Timestamp) -> Result<bool, Error> {
        let found: Option<i64> = t::table
            .inner_join(seals::table.on(seals::event_id.eq(t::id)))
            .filter(t::name.eq(Name::DatabaseRecovered.as_str()))
            .filter(t::at.gt(at.micros()))
            .select(seals::seq)
            .first(self.connection)
            .optional()?;
        Ok(found.is_some())
    }

    /// Returns the row ids of events before `at` that have no seal.
    ///
    /// # Errors
    /// [`Error`].
    pub fn list_unsealed_audit(&mut self, at: Timestamp, limit: i64) -> Result<Vec<String>, Error> {
        Ok(t::table
            .left_join(seals::table.on(seals::event_id.eq(t::id)))
            .filter(seals::seq.is_null())
            .filter(t::at.lt(at.micros()))
            .order(t::id)
            .limit(limit)
            .select(t::id)
            .load(self.connection)?)
    }

    /// Returns the newest events, in order of time.
    ///
    /// # Errors
    /// [`Error`].
    pub fn last_audit(&mut self, count: i64) -> Result<Vec<Row>, Error> {
        let mut rows: Vec<Columns> = t::table
            .order(t::id.desc())
            .limit(count)
            .load(self.connection)?;
        rows.reverse();
        Ok(rows.into_iter().map(row).collect())
    }

    /// Returns the events after a row id, in order.
    ///
    /// # Errors
    /// [`Error`].
    pub fn audit_after(&mut self, id: &str, limit: i64) -> Result<Vec<Row>, Error> {
        let rows: Vec<Columns> = t::table
            .filter(t::id.gt(id))
            .order(t::id)
            .limit(limit)
            .load(self.connection)?;
        Ok(rows.into_iter().map(row).collect())
    }

    /// Removes a batch of sealed events past their retention, with their seals except the last, from which
    /// the chain continues. An event records the removal.
    ///
    /// # Errors
    /// [`Error`].
    pub fn sweep_audit(&mut self, now: Timestamp) -> Result<usize, Error> {
        let oldest: Vec<(Columns, i64, Vec<u8>)> = t::table
            .inner_join(seals::table.on(seals::event_id.eq(t::id)))
            .order(seals::seq)
            .limit(CLEAN_UP_BATCH)
            .select((t::all_columns, seals::seq, seals::mac))
            .load(self.connection)?;
        let limit = now - KEPT;
        // At most once a day, because each removal is an event itself.
        if oldest
            .first()
            .is_none_or(|(columns, ..)| columns.1 >= (limit - DAY).micros())
        {
            return Ok(0);
        }
        // From the start of the chain, so that no later event loses its seal.
        let old: Vec<(Columns, i64, Vec<u8>)> = oldest
            .into_iter()
            .take_while(|(columns, ..)| columns.1 < limit.micros())
            .collect();
        let Some((_, last, mac)) = old.last() else {
            return Ok(0);
        };
        self.put_audit(&Event {
            at: now,
            name: Name::AuditSwept,
            actor: Actor::System,
            target: Target::Audit,
            reason: None,
            detail: serde_json::json!({
                "events": old.len(), "through": last, "seal": base64url(mac),
            }),
        })?;
        diesel::delete(seals::table.filter(seals::seq.lt(*last))).execute(self.connection)?;
        let ids: Vec<&str> = old.iter().map(|(columns, ..)| columns.0.as_str()).collect();
        Ok(diesel::delete(t::table.filter(t::id.eq_any(ids))).execute(self.connection)?)
    }
}
