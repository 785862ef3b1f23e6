//! The table `logout_notifications`: clients that are still to be told that a session has ended.

use diesel::sql_types::{BigInt, Text};
use diesel::{BoolExpressionMethods, ExpressionMethods, OptionalExtension, QueryDsl, RunQueryDsl};

use super::schema::{clients, logout_notifications as t};
use super::{Error, Transaction, unreadable};
use crate::config::limits::{CLEAN_UP_BATCH, LOGOUT_NOTIFICATION_KEPT, LOGOUT_RETRIES};
use crate::id::{ClientId, Sid, UserId};
use crate::keys::Alg;
use crate::time::Timestamp;

/// Which sessions ended.
#[derive(Clone, Copy, Debug)]
pub enum Ended<'a> {
    /// One session.
    Session(&'a Sid),
    /// All sessions of a user that were opened under this auth epoch.
    User(&'a UserId, i64),
}

/// A notification that this node has taken over.
#[derive(Clone, Debug)]
pub struct LogoutNotification {
    /// The client.
    pub client_id: ClientId,
    /// The session that ended.
    pub sid: Sid,
    /// The user of the session.
    pub user_id: UserId,
    /// Where the client is told (Back-Channel Logout §2.2).
    pub uri: String,
    /// The signature algorithm of the client's ID tokens.
    pub alg: Alg,
    /// Number of attempts, this one included.
    pub attempts: i64,
}

impl LogoutNotification {
    /// Returns whether no attempt follows this one.
    pub fn is_last_attempt(&self) -> bool {
        usize::try_from(self.attempts).is_ok_and(|attempts| attempts > LOGOUT_RETRIES.len())
    }
}

impl Transaction<'_> {
    /// Inserts a notification for each client that has an active grant of the ended sessions and registered a
    /// back-channel logout URI. Must precede the end of these grants. A notification that exists already stays.
    ///
    /// # Errors
    /// [`Error`].
    pub fn put_logout_notifications(
        &mut self,
        ended: Ended<'_>,
        now: Timestamp,
    ) -> Result<(), Error> {
        const SESSION: &str = "INSERT INTO logout_notifications (client_id, sid, user_id, created_at, next_at) \
            SELECT DISTINCT g.client_id, g.sid, g.user_id, $1, $2 FROM grants g JOIN clients c ON c.id = g.client_id \
            WHERE g.sid = $3 AND g.ended_at IS NULL AND c.backchannel_logout_uri IS NOT NULL \
            AND c.disabled_at IS NULL AND c.deleted_at IS NULL ON CONFLICT DO NOTHING";
        const USER: &str = "INSERT INTO logout_notifications (client_id, sid, user_id, created_at, next_at) \
            SELECT DISTINCT g.client_id, g.sid, g.user_id, $1, $2 FROM grants g JOIN clients c ON c.id = g.client_id \
            WHERE g.user_id = $3 AND g.user_epoch = $4 AND g.ended_at IS NULL \
            AND c.backchannel_logout_uri IS NOT NULL \
            AND c.disabled_at IS NULL AND c.deleted_at IS NULL ON CONFLICT DO NOTHING";
        let now = now.micros();
        let rows = match ended {
            Ended::Session(sid) => diesel::sql_query(SESSION)
                .bind::<BigInt, _>(now)
                .bind::<BigInt, _>(now)
                .bind::<Text, _>(sid.as_str())
                .execute(self.connection),
            Ended::User(user, epoch) => diesel::sql_query(USER)
                .bind::<BigInt, _>(now)
                .bind::<BigInt, _>(now)
                .bind::<Text, _>(user.as_str())
                .bind::<BigInt, _>(epoch)
                .execute(self.connection),
        };
        rows?;
        Ok(())
    }

    /// Returns whether a notification is due, of one session if `sid` is given.
    ///
    /// # Errors
    /// [`Error`].
    pub fn has_due_logout_notification(
        &mut self,
        sid: Option<&Sid>,
        now: Timestamp,
    ) -> Result<bool, Error> {
        let mut due = t::table
            .filter(t::next_at.le(now.micros()))
            .select(t::sid)
            .into_boxed();
        if let Some(sid) = sid {
            due = due.filter(t::sid.eq(sid.as_str()));
        }
        let first: Option<String> = due.first(self.connection).optional()?;
        Ok(first.is_some())
    }

    /// Takes over due notifications, of one session if `sid` is given, and schedules the attempt after this one. A
    /// notification is taken by one conditional statement, so no two nodes send it. Notifications whose client is no
    /// longer to be told are removed.
    ///
    /// # Errors
    /// [`Error`].
    pub fn take_logout_notifications(
        &mut self,
        sid: Option<&Sid>,
        limit: i64,
        now: Timestamp,
    ) -> Result<Vec<LogoutNotification>, Error> {
        type Row = (String, String, String, i64, Option<String>, String, bool);
        let mut due = t::table
            .inner_join(clients::table)
            .filter(t::next_at.le(now.micros()))
            .order(t::next_at)
            .limit(limit)
            .select((
                t::client_id,
                t::sid,
                t::user_id,
                t::attempts,
                clients::backchannel_logout_uri,
                clients::id_token_alg,
                clients::disabled_at
                    .is_null()
                    .and(clients::deleted_at.is_null()),
            ))
            .into_boxed();
        if let Some(sid) = sid {
            due = due.filter(t::sid.eq(sid.as_str()));
        }
        let rows: Vec<Row> = due.load(self.connection)?;
        let mut taken = Vec::with_capacity(rows.len());
        for (client_id, sid, user_id, attempts, uri, alg, is_active) in rows {
            let row = t::table
                .find((&client_id, &sid))
                .filter(t::attempts.eq(attempts))
                .filter(t::next_at.le(now.micros()));
            let Some(uri) = uri.filter(|_| is_active) else {
                diesel::delete(row).execute(self.connection)?;
                continue;
            };
            let delay = usize::try_from(attempts)
                .ok()
                .and_then(|attempts| LOGOUT_RETRIES.get(attempts).or(LOGOUT_RETRIES.last()));
            let next = now + delay.copied().unwrap_or_default();
            let rows = diesel::update(row)
                .set((
                    t::attempts.eq(attempts + 1),
                    t::next_at.eq(Some(next.micros())),
                ))
                .execute(self.connection)?;
            if rows == 1 {
                let alg = Alg::from_name(&alg)
                    .ok_or_else(|| unreadable("clients", "id_token_alg", &client_id))?;
                taken.push(LogoutNotification {
                    client_id: ClientId::from(client_id),
                    sid: Sid::from(sid),
                    user_id: UserId::from(user_id),
                    uri,
                    alg,
                    attempts: attempts + 1,
                });
            }
        }
        Ok(taken)
    }

    /// Removes a notification that its client received.
    ///
    /// # Errors
    /// [`Error`].
    pub fn drop_logout_notification(&mut self, sent: &LogoutNotification) -> Result<(), Error> {
        let row = t::table.find((sent.client_id.as_str(), sent.sid.as_str()));
        diesel::delete(row).execute(self.connection)?;
        Ok(())
    }

    /// Gives up a notification whose last attempt failed. Returns `false` if another attempt was made meanwhile.
    ///
    /// # Errors
    /// [`Error`].
    pub fn give_up_logout_notification(
        &mut self,
        failed: &LogoutNotification,
    ) -> Result<bool, Error> {
        let row = t::table
            .find((failed.client_id.as_str(), failed.sid.as_str()))
            .filter(t::attempts.eq(failed.attempts));
        let rows = diesel::update(row)
            .set(t::next_at.eq(None::<i64>))
            .execute(self.connection)?;
        Ok(rows == 1)
    }

    /// Removes notifications that were given up, or that were not sent for a week.
    pub(super) fn sweep_logout_notifications(&mut self, now: Timestamp) -> Result<usize, Error> {
        let old = (now - LOGOUT_NOTIFICATION_KEPT).micros();
        let sids: Vec<String> = t::table
            .filter(t::created_at.lt(old))
            .limit(CLEAN_UP_BATCH)
            .select(t::sid)
            .load(self.connection)?;
        let unsent = t::table
            .filter(t::sid.eq_any(sids))
            .filter(t::created_at.lt(old));
        Ok(diesel::delete(unsent).execute(self.connection)?)
    }
}
