//! The table `sessions`.

use diesel::{ExpressionMethods, OptionalExtension, QueryDsl, RunQueryDsl};
use portcullis_verifier::Kind;

use super::logout_notifications::Ended;
use super::revocations::Record;
use super::schema::{grants, sessions as t, users};
use super::{Error, Transaction, unreadable};
use crate::accounts::session::{Acr, Amr, Login, Session};
use crate::accounts::user::Username;
use crate::audit::{Actor, RevocationReason};
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
    /// Returns the session of a cookie, with the name of its user, unless the session was revoked. Whether
    /// it is expired is for [`Session::is_expired`] to decide.
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
            .first(self.connection)
            .optional()?;
        let found = row.map(|(row, username)| (session(row), username));
        match found {
            None => Ok(None),
            Some((Ok(session), username)) => Ok(Some((session, Username::from_stored(username)))),
            // A newer node may have stored values that this one does not know. The user signs in again here.
            Some((Err(error), _)) => {
                tracing::warn!(event = "storage.error", reason = "session", %error);
                Ok(None)
            }
        }
    }

    /// Returns whether a session belongs to a user and is not revoked.
    ///
    /// # Errors
    /// [`Error`].
    pub fn is_session_of(&mut self, user: &UserId, sid: &Sid) -> Result<bool, Error> {
        let found = t::table
            .inner_join(users::table)
            .filter(t::user_id.eq(user.as_str()))
            .filter(t::sid.eq(sid.as_str()))
            .filter(t::ended_at.is_null())
            .filter(users::auth_epoch.eq(t::user_epoch));
        Ok(diesel::select(diesel::dsl::exists(found)).get_result(self.connection)?)
    }

    /// Returns the sessions of a user that are not revoked, the newest sign-in first. Expired ones are
    /// included until clean-up removes them. Sessions whose values this version does not know are left out.
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
            .load(self.connection)?;
        Ok(rows
            .into_iter()
            .filter_map(|row| session(row).ok())
            .collect())
    }

    /// Inserts a session.
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
            .execute(self.connection)?;
        Ok(())
    }

    /// Replaces the cookie of a session after the same user signed in again in the same browser. The
    /// `sid` stays, and the old cookie becomes invalid. Returns `false` if the old session no longer exists.
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
        .execute(self.connection)?;
        Ok(rows == 1)
    }

    /// Records that a session is in use, at most once a minute.
    ///
    /// # Errors
    /// [`Error`].
    pub fn touch_session(&mut self, session: &Session, now: Timestamp) -> Result<(), Error> {
        if now.since(session.seen_at) >= SESSION_TOUCH {
            diesel::update(t::table.find(session.id_hash.as_bytes()))
                .set(t::seen_at.eq(now.micros()))
                .execute(self.connection)?;
        }
        Ok(())
    }

    /// Returns whether the session exists, active or not.
    ///
    /// # Errors
    /// [`Error`].
    pub fn has_session(&mut self, sid: &Sid) -> Result<bool, Error> {
        let found = t::table.filter(t::sid.eq(sid.as_str()));
        Ok(diesel::select(diesel::dsl::exists(found)).get_result(self.connection)?)
    }

    /// Revokes a session and its grants except offline ones, and inserts the record. Returns `false` if the
    /// session was already revoked.
    ///
    /// # Errors
    /// [`Error`].
    pub fn revoke_session(
        &mut self,
        sid: &Sid,
        reason: &RevocationReason,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<bool, Error> {
        let rows = diesel::update(
            t::table
                .filter(t::sid.eq(sid.as_str()))
                .filter(t::ended_at.is_null()),
        )
        .set(t::ended_at.eq(now.micros()))
        .execute(self.connection)?;
        if rows == 0 {
            return Ok(false);
        }
        self.put_logout_notifications(Ended::Session(sid), now)?;
        diesel::update(
            grants::table
                .filter(grants::sid.eq(sid.as_str()))
                .filter(grants::offline.eq(false))
                .filter(grants::ended_at.is_null()),
        )
        .set(grants::ended_at.eq(now.micros()))
        .execute(self.connection)?;
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

    /// Revokes the oldest sessions of a user who, with a new one, has more than allowed (policy §6), and
    /// returns them.
    ///
    /// # Errors
    /// [`Error`].
    pub fn revoke_surplus_sessions(
        &mut self,
        new: &Session,
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
            .load(self.connection)?;
        let surplus: Vec<Sid> = surplus.into_iter().map(Sid::from).collect();
        for sid in &surplus {
            self.revoke_session(sid, &RevocationReason::TooManySessions, &Actor::System, now)?;
        }
        Ok(surplus)
    }

    /// Removes an expired session. Its grants stay active, because expiry is not a sign-out: while a grant
    /// refers to the session, the row stays without its cookie.
    ///
    /// # Errors
    /// [`Error`].
    pub fn drop_expired_session(&mut self, session: &Session) -> Result<(), Error> {
        let row = t::table.filter(t::id_hash.eq(session.id_hash.as_bytes()));
        let grants = grants::table
            .filter(grants::sid.eq(t::sid))
            .filter(grants::ended_at.is_null());
        let unused = row.filter(diesel::dsl::not(diesel::dsl::exists(grants)));
        if diesel::delete(unused).execute(self.connection)? == 0 {
            let no_cookie = Hash::of(&format!("expired {}", session.login.sid));
            diesel::update(row)
                .set(t::id_hash.eq(no_cookie.as_bytes()))
                .execute(self.connection)?;
        }
        Ok(())
    }
}
