//! `sessions`.

use diesel::{ExpressionMethods, OptionalExtension, QueryDsl, RunQueryDsl};
use portcullis_verifier::Kind;

use super::revocations::Record;
use super::schema::{grants, sessions as t, users};
use super::{Error, Transaction, unreadable};
use crate::accounts::session::{Acr, Amr, Login, Session};
use crate::accounts::user::Username;
use crate::config::limits::{CLEAN_UP_BATCH, SESSION_TOUCH, SESSIONS_PER_USER};
use crate::id::{Sid, UserId};
use crate::secret::Hash;
use crate::time::Timestamp;

type Row = (
    Vec<u8>,
    String,
    String,
    i64,
    i64,
    String,
    String,
    i64,
    i64,
    Option<i64>,
);

fn session(
    (id_hash, sid, user_id, user_epoch, auth_time, acr, amr, seen_at, expires_at, _): Row,
) -> Result<Session, Error> {
    let broken = |column| unreadable("sessions", column, &sid);
    let (acr, amr) = (Acr::parse(&acr), Amr::parse(&amr));
    let (acr, amr) = (
        acr.ok_or_else(|| broken("acr"))?,
        amr.ok_or_else(|| broken("amr"))?,
    );
    Ok(Session {
        id_hash: Hash::from_bytes(id_hash),
        login: Login {
            sid: Sid::from(sid),
            user_id: UserId::from(user_id),
            user_epoch,
            auth_time: Timestamp::from_micros(auth_time),
            acr,
            amr,
        },
        seen_at: Timestamp::from_micros(seen_at),
        expires_at: Timestamp::from_micros(expires_at),
    })
}

impl Transaction<'_> {
    /// The session of a cookie, if it has not ended and its person was not cut off since, with the
    /// person's name. Whether it ran out of time is for [`Session::is_expired`].
    ///
    /// # Errors
    /// [`Error`].
    pub fn find_session(&mut self, id_hash: &Hash) -> Result<Option<(Session, Username)>, Error> {
        let row: Option<(Row, String)> = t::table
            .inner_join(users::table)
            .filter(t::id_hash.eq(id_hash.as_bytes()))
            .filter(t::ended_at.is_null())
            .filter(users::auth_epoch.eq(t::user_epoch))
            .filter(users::disabled_at.is_null())
            .select((t::all_columns, users::username))
            .first(self.0)
            .optional()?;
        row.map(|(row, username)| Ok((session(row)?, Username::from_stored(username))))
            .transpose()
    }

    /// The standing sessions of a person, the newest login first; those that ran out of time since
    /// are among them until they are cleaned up.
    ///
    /// # Errors
    /// [`Error`].
    pub fn list_sessions(&mut self, user: &UserId) -> Result<Vec<Session>, Error> {
        let rows: Vec<Row> = t::table
            .inner_join(users::table)
            .filter(t::user_id.eq(user.as_str()))
            .filter(t::ended_at.is_null())
            .filter(users::auth_epoch.eq(t::user_epoch))
            .order(t::auth_time.desc())
            .select(t::all_columns)
            .load(self.0)?;
        rows.into_iter().map(session).collect()
    }

    /// Writes a new session.
    ///
    /// # Errors
    /// [`Error`].
    pub fn put_session(&mut self, session: &Session) -> Result<(), Error> {
        let login = &session.login;
        diesel::insert_into(t::table)
            .values((
                t::id_hash.eq(session.id_hash.as_bytes()),
                t::sid.eq(login.sid.as_str()),
                t::user_id.eq(login.user_id.as_str()),
                t::user_epoch.eq(login.user_epoch),
                t::auth_time.eq(login.auth_time.micros()),
                t::acr.eq(login.acr.as_str()),
                t::amr.eq(login.amr.to_string()),
                t::seen_at.eq(session.seen_at.micros()),
                t::expires_at.eq(session.expires_at.micros()),
            ))
            .execute(self.0)?;
        Ok(())
    }

    /// The same person signed in again in the same browser: the login keeps its `sid` under a new
    /// cookie, and the old cookie is dead. `false` when the old one is no longer there.
    ///
    /// # Errors
    /// [`Error`].
    pub fn renew_session(&mut self, old: &Hash, new: &Session) -> Result<bool, Error> {
        let rows = diesel::update(
            t::table
                .filter(t::id_hash.eq(old.as_bytes()))
                .filter(t::user_id.eq(new.login.user_id.as_str()))
                .filter(t::user_epoch.eq(new.login.user_epoch))
                .filter(t::ended_at.is_null()),
        )
        .set((
            t::id_hash.eq(new.id_hash.as_bytes()),
            t::auth_time.eq(new.login.auth_time.micros()),
            t::acr.eq(new.login.acr.as_str()),
            t::amr.eq(new.login.amr.to_string()),
            t::seen_at.eq(new.seen_at.micros()),
            t::expires_at.eq(new.expires_at.micros()),
        ))
        .execute(self.0)?;
        Ok(rows == 1)
    }

    /// Notes that a session is in use, at most once a minute.
    ///
    /// # Errors
    /// [`Error`].
    pub fn touch_session(&mut self, session: &Session, now: Timestamp) -> Result<(), Error> {
        if now.since(session.seen_at) >= SESSION_TOUCH {
            diesel::update(t::table.find(session.id_hash.as_bytes()))
                .set(t::seen_at.eq(now.micros()))
                .execute(self.0)?;
        }
        Ok(())
    }

    /// Whether there is such a session, ended or not.
    ///
    /// # Errors
    /// [`Error`].
    pub fn has_session(&mut self, sid: &Sid) -> Result<bool, Error> {
        let found = t::table.filter(t::sid.eq(sid.as_str()));
        Ok(diesel::select(diesel::dsl::exists(found)).get_result(self.0)?)
    }

    /// Ends a session by its person's wish: with it end its grants, but for offline ones, and the
    /// record goes on the blocklist. `false` when it had ended before.
    ///
    /// # Errors
    /// [`Error`].
    pub fn end_session(
        &mut self,
        sid: &Sid,
        reason: &str,
        actor: &str,
        now: Timestamp,
    ) -> Result<bool, Error> {
        let rows = diesel::update(
            t::table
                .filter(t::sid.eq(sid.as_str()))
                .filter(t::ended_at.is_null()),
        )
        .set(t::ended_at.eq(now.micros()))
        .execute(self.0)?;
        if rows == 0 {
            return Ok(false);
        }
        diesel::update(
            grants::table
                .filter(grants::sid.eq(sid.as_str()))
                .filter(grants::offline.eq(false))
                .filter(grants::ended_at.is_null()),
        )
        .set(grants::ended_at.eq(now.micros()))
        .execute(self.0)?;
        let record = Record {
            kind: Kind::Session,
            value: sid.as_str(),
            floor: 0,
            reason,
            actor,
        };
        self.put_revocation(&record, now)?;
        Ok(true)
    }

    /// Ends the oldest sessions of a person who with a new one has more than one person may have
    /// (policy §6), and names them.
    ///
    /// # Errors
    /// [`Error`].
    pub fn end_surplus_sessions(
        &mut self,
        new: &Session,
        reason: &str,
        now: Timestamp,
    ) -> Result<Vec<Sid>, Error> {
        let login = &new.login;
        let surplus: Vec<String> = t::table
            .filter(t::user_id.eq(login.user_id.as_str()))
            .filter(t::user_epoch.eq(login.user_epoch))
            .filter(t::sid.ne(login.sid.as_str()))
            .filter(t::ended_at.is_null())
            .filter(t::expires_at.gt(now.micros()))
            .order((t::auth_time.desc(), t::sid.desc()))
            .offset(SESSIONS_PER_USER - 1)
            .limit(CLEAN_UP_BATCH)
            .select(t::sid)
            .load(self.0)?;
        let surplus: Vec<Sid> = surplus.into_iter().map(Sid::from).collect();
        for sid in &surplus {
            self.end_session(sid, reason, "node", now)?;
        }
        Ok(surplus)
    }

    /// Removes a session that ran out of time. That ends no grant, since time alone is no sign-out:
    /// while one rests on it, the row stays without its cookie.
    ///
    /// # Errors
    /// [`Error`].
    pub fn drop_expired_session(&mut self, session: &Session) -> Result<(), Error> {
        let row = t::table.filter(t::id_hash.eq(session.id_hash.as_bytes()));
        let grants = grants::table
            .filter(grants::sid.eq(t::sid))
            .filter(grants::ended_at.is_null());
        let unused = row.filter(diesel::dsl::not(diesel::dsl::exists(grants)));
        if diesel::delete(unused).execute(self.0)? == 0 {
            let nobody = Hash::of(&format!("expired {}", session.login.sid));
            diesel::update(row)
                .set(t::id_hash.eq(nobody.as_bytes()))
                .execute(self.0)?;
        }
        Ok(())
    }
}
