//! `feed_acks`: which revocation records each instance of a subscriber has applied.

use diesel::{ExpressionMethods, QueryDsl, RunQueryDsl};

use super::schema::feed_acks as t;
use super::{Error, Transaction, list, to_list};
use crate::config::limits::{ACK_KEPT, CLEAN_UP_BATCH};
use crate::id::ClientId;
use crate::time::Timestamp;

/// The last acknowledgement of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// The subscriber.
    pub client_id: ClientId,
    /// Its instance.
    pub instance: String,
    /// The feed epoch of `seq`.
    pub epoch: i64,
    /// The number of the last record that it has applied.
    pub seq: i64,
    /// The signing keys that it holds.
    pub kids: Vec<String>,
    /// The feed staleness, in seconds, at which it stops accepting tokens; `None`: never.
    pub max_age: Option<i64>,
    /// When a node received it.
    pub acked_at: Timestamp,
}

impl Transaction<'_> {
    /// Stores an acknowledgement unless a newer one is stored or its client is unknown, which happens after
    /// a restore of the database.
    ///
    /// # Errors
    /// [`Error`].
    pub fn put_ack(&mut self, ack: &Acknowledged) -> Result<(), Error> {
        let kids = to_list(&ack.kids);
        let values = (
            t::epoch.eq(ack.epoch),
            t::seq.eq(ack.seq),
            t::kids.eq(&kids),
            t::max_age.eq(ack.max_age),
            t::acked_at.eq(ack.acked_at.micros()),
        );
        let row = t::table.find((ack.client_id.as_str(), &ack.instance));
        let older = t::acked_at.le(ack.acked_at.micros());
        let updated = diesel::update(row.filter(older))
            .set(values)
            .execute(self.connection)?;
        if updated == 1
            || self.has_ack(&ack.client_id, &ack.instance)?
            || !self.has_client(&ack.client_id)?
        {
            return Ok(());
        }
        diesel::insert_into(t::table)
            .values((
                t::client_id.eq(ack.client_id.as_str()),
                t::instance.eq(&ack.instance),
                values,
            ))
            .execute(self.connection)?;
        Ok(())
    }

    fn has_ack(&mut self, client: &ClientId, instance: &str) -> Result<bool, Error> {
        let row = t::table.find((client.as_str(), instance));
        Ok(diesel::select(diesel::dsl::exists(row)).get_result(self.connection)?)
    }

    /// Returns the last acknowledgement of every instance, by subscriber and instance.
    ///
    /// # Errors
    /// [`Error`].
    pub fn list_acks(&mut self) -> Result<Vec<Acknowledged>, Error> {
        type Row = (String, String, i64, i64, String, Option<i64>, i64);
        let rows: Vec<Row> = t::table
            .order((t::client_id, t::instance))
            .load(self.connection)?;
        let ack = |(client, instance, epoch, seq, kids, max_age, acked_at): Row| {
            Ok(Acknowledged {
                kids: list("feed_acks", "kids", &instance, &kids)?,
                client_id: ClientId::from(client),
                instance,
                epoch,
                seq,
                max_age,
                acked_at: Timestamp::from_micros(acked_at),
            })
        };
        rows.into_iter().map(ack).collect()
    }

    /// Removes instances that sent nothing for a day.
    pub(super) fn sweep_acks(&mut self, now: Timestamp) -> Result<usize, Error> {
        let silent = t::table.filter(t::acked_at.lt((now - ACK_KEPT).micros()));
        let rows: Vec<(String, String)> = silent
            .limit(CLEAN_UP_BATCH)
            .select((t::client_id, t::instance))
            .load(self.connection)?;
        for (client, instance) in &rows {
            diesel::delete(t::table.find((client, instance))).execute(self.connection)?;
        }
        Ok(rows.len())
    }
}
