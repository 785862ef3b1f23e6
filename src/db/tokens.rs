//! Whether an access token still stands: it is a JWT and has no row of its own, but what it rests on
//! has.

use diesel::dsl::exists;
use diesel::{
    BoolExpressionMethods, ExpressionMethods, NullableExpressionMethods, QueryDsl, RunQueryDsl,
};
use portcullis_verifier::{Claims, Kind};

use super::schema::{clients, consents, feed_head, grants, revocations, sessions, users};
use super::{Error, Transaction};

impl Transaction<'_> {
    /// Whether nothing that a genuine access token rests on has ended: its client, its person and the
    /// feed epoch have the numbers that it carries, its grant, session and consent stand, and it is
    /// not revoked itself. One statement.
    ///
    /// # Errors
    /// [`Error`].
    pub fn is_token_active(&mut self, claims: &Claims) -> Result<bool, Error> {
        // No row has such a number, and a token with it is none of ours.
        let number = |epoch: u64| i64::try_from(epoch).unwrap_or(-1);
        let epoch =
            exists(feed_head::table.filter(feed_head::epoch.eq(number(claims.rev.feed_epoch))));
        let client = exists(
            clients::table
                .filter(clients::id.eq(&claims.client_id))
                .filter(clients::auth_epoch.eq(number(claims.rev.client_epoch)))
                .filter(clients::disabled_at.is_null()),
        );
        let revoked = exists(
            revocations::table
                .filter(revocations::kind.eq(Kind::Token.letter().to_string()))
                .filter(revocations::value.eq(&claims.jti)),
        );
        let user_epoch = claims.rev.user_epoch.map_or(-1, number);
        let user = exists(
            users::table
                .filter(users::id.eq(&claims.sub))
                .filter(users::auth_epoch.eq(user_epoch))
                .filter(users::disabled_at.is_null()),
        );
        let consent = exists(
            consents::table
                .filter(consents::id.nullable().eq(grants::consent_id))
                .filter(consents::ended_at.is_null()),
        );
        let grant = exists(
            grants::table
                .filter(grants::id.eq(claims.grant_id.as_deref().unwrap_or_default()))
                .filter(grants::ended_at.is_null())
                .filter(grants::consent_id.is_null().or(consent)),
        );
        let session = exists(
            sessions::table
                .filter(sessions::sid.eq(claims.sid.as_deref().unwrap_or_default()))
                .filter(sessions::ended_at.is_null()),
        );
        let (epoch, client, revoked, user, grant, session): (bool, bool, bool, bool, bool, bool) =
            diesel::select((epoch, client, revoked, user, grant, session)).get_result(self.0)?;
        let person = claims.rev.user_epoch.is_some();
        Ok(epoch
            && client
            && !revoked
            && (user || !person)
            && (grant || claims.grant_id.is_none())
            && (session || claims.sid.is_none()))
    }
}
