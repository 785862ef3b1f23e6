//! The SQL conditions for an active grant (RFC 7662 §2.2): it is neither revoked nor expired, and its
//! user, client, session, consent and feed epoch are unchanged.
//!
//! These are macros because the type of a diesel expression contains the types of its operands, which
//! are columns in one statement and values in another.

/// The user is not disabled and has this auth epoch.
macro_rules! is_user_active {
    ($id:expr, $epoch:expr) => {{
        use $crate::db::schema::users;
        diesel::dsl::exists(
            users::table
                .filter(users::id.eq($id))
                .filter(users::auth_epoch.eq($epoch))
                .filter(users::disabled_at.is_null()),
        )
    }};
}

/// The client is not disabled and has this auth epoch.
macro_rules! is_client_active {
    ($id:expr, $epoch:expr) => {{
        use $crate::db::schema::clients;
        diesel::dsl::exists(
            clients::table
                .filter(clients::id.eq($id))
                .filter(clients::auth_epoch.eq($epoch))
                .filter(clients::disabled_at.is_null()),
        )
    }};
}

/// The session is not revoked.
macro_rules! is_session_active {
    ($sid:expr) => {{
        use $crate::db::schema::sessions;
        diesel::dsl::exists(
            sessions::table
                .filter(sessions::sid.eq($sid))
                .filter(sessions::ended_at.is_null()),
        )
    }};
}

/// The grant needs no consent, or its consent is not withdrawn.
macro_rules! is_consent_active {
    () => {{
        use $crate::db::schema::{consents, grants};
        let consent = consents::table
            .filter(consents::id.nullable().eq(grants::consent_id))
            .filter(consents::ended_at.is_null());
        grants::consent_id
            .is_null()
            .or(diesel::dsl::exists(consent))
    }};
}

/// The database was not recovered since this feed epoch.
macro_rules! is_feed_epoch_current {
    ($epoch:expr) => {{
        use $crate::db::schema::feed_head;
        diesel::dsl::exists(feed_head::table.filter(feed_head::epoch.eq($epoch)))
    }};
}

/// The row of `grants` is active at this instant.
macro_rules! is_grant_active {
    ($now:expr) => {{
        use $crate::db::schema::grants;
        let now: i64 = $now.micros();
        grants::ended_at
            .is_null()
            .and(grants::expires_at.gt(now))
            .and(grants::idle_until.gt(now))
            .and(is_user_active!(grants::user_id, grants::user_epoch))
            .and(is_client_active!(grants::client_id, grants::client_epoch))
            .and(is_feed_epoch_current!(grants::feed_epoch))
            .and(grants::offline.eq(true).or(is_session_active!(grants::sid)))
            .and(is_consent_active!())
    }};
}
