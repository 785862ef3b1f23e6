//! Introspection of access tokens. A token is a JWT without a row of its own, so its state follows from
//! its grant, session, user and client.

use diesel::dsl::exists;
use diesel::{
    BoolExpressionMethods, ExpressionMethods, NullableExpressionMethods, QueryDsl, RunQueryDsl,
};
use portcullis_verifier::{Claims, Kind};

use super::schema::{grants, revocations};
use super::{Error, Transaction};

impl Transaction<'_> {
    /// Returns whether a verified access token is active, in one statement: the auth epochs of its
    /// client and user and the feed epoch are those of its claims, and the token, its grant, session
    /// and consent are not revoked.
    ///
    /// # Errors
    /// [`Error`].
    pub fn is_token_active(&mut self, claims: &Claims) -> Result<bool, Error> {
        // No row has the epoch -1, and this server issues no token with a larger one.
        let number = |epoch: u64| i64::try_from(epoch).unwrap_or(-1);
        let epoch = is_feed_epoch_current!(number(claims.rev.feed_epoch));
        let client = is_client_active!(&claims.client_id, number(claims.rev.client_epoch));
        let user = is_user_active!(&claims.sub, claims.rev.user_epoch.map_or(-1, number));
        let session = is_session_active!(claims.sid.as_deref().unwrap_or_default());
        let grant = exists(
            grants::table
                .filter(grants::id.eq(claims.grant_id.as_deref().unwrap_or_default()))
                .filter(grants::ended_at.is_null())
                .filter(is_consent_active!()),
        );
        let revoked = exists(
            revocations::table
                .filter(revocations::kind.eq(Kind::Token.letter().to_string()))
                .filter(revocations::value.eq(&claims.jti)),
        );
        let query = diesel::select((epoch, client, revoked, user, grant, session));
        type Row = (bool, bool, bool, bool, bool, bool);
        let (epoch, client, revoked, user, grant, session): Row =
            on_own_backend!(self.connection, |inner| query.get_result(inner))?;
        Ok(epoch
            && client
            && !revoked
            && (user || claims.rev.user_epoch.is_none())
            && (grant || claims.grant_id.is_none())
            && (session || claims.sid.is_none()))
    }
}
