//! `feed_acks`: which revocation records each instance of a subscriber has applied.

use diesel::sql_types::{BigInt, Nullable, Text};
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
        const UPSERT: &str = "
            INSERT INTO feed_acks (client_id, instance, epoch, seq, kids, max_age, acked_at)
            SELECT $1, $2, $3, $4, $5, $6, $7 WHERE EXISTS (SELECT 1 FROM clients WHERE id = $1)
            ON CONFLICT (client_id, instance) DO UPDATE SET
                epoch = excluded.epoch, seq = excluded.seq, kids = excluded.kids,
                max_age = excluded.max_age, acked_at = excluded.acked_at
            WHERE feed_acks.acked_at <= excluded.acked_at";
        diesel::sql_query(UPSERT)
            .bind::<Text, _>(ack.client_id.as_str())
            .bind::<Text, _>(&ack.instance)
            .bind::<BigInt, _>(ack.epoch)
            .bind::<BigInt, _>(ack.seq)
            .bind::<Text, _>(to_list(&ack.kids))
            .bind::<Nullable<BigInt>, _>(ack.max_age)
            .bind::<BigInt, _>(ack.acked_at.micros())
            .execute(self.connection)?;
        Ok(())
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
