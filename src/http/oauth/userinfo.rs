//! `/oauth2/userinfo`: OIDC Core §5.3. The access token is in the `Authorization` header or, for POST, in the form.

use actix_web::http::StatusCode;
use actix_web::http::header::CONTENT_TYPE;
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use portcullis_verifier::{Need, Rejected};
use serde_json::{Map, Value};

use crate::app::App;
use crate::http::error;
use crate::http::extract::{self, FormError};
use crate::http::oauth::{restored, signing};
use crate::id::{ClientId, GrantId, UserId};
use crate::keys::Alg;
use crate::oauth::request::scope::Scope;
use crate::oauth::{Detail, Error, introspection, userinfo};

/// Handles `GET /oauth2/userinfo`.
pub async fn get(request: HttpRequest, app: Data<App>) -> HttpResponse {
    let token = header(&request);
    respond(&request, &app, token).await
}

/// Handles `POST /oauth2/userinfo`.
pub async fn post(request: HttpRequest, app: Data<App>, body: Payload) -> HttpResponse {
    let token = match (header(&request), form(&request, body).await) {
        (Ok(Some(_)), Ok(Some(_))) => Err(Rejected::Request),
        (Ok(header), Ok(form)) => Ok(header.or(form)),
        (Err(rejected), _) | (_, Err(rejected)) => Err(rejected),
    };
    respond(&request, &app, token).await
}

enum UserInfoError {
    /// The access token is rejected (RFC 6750 §3.1).
    Rejected(Rejected),
    /// Any other error.
    Error(Error),
}

impl<E: Into<Error>> From<E> for UserInfoError {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

async fn respond(
    request: &HttpRequest,
    app: &App,
    token: Result<Option<String>, Rejected>,
) -> HttpResponse {
    let result = match token {
        Err(rejected) => Err(UserInfoError::Rejected(rejected)),
        Ok(token) => serve_userinfo(app, token).await,
    };
    match result {
        Ok(UserInfo::Plain(claims)) => HttpResponse::Ok()
            .insert_header(("Cache-Control", "no-store"))
            .json(claims),
        Ok(UserInfo::Signed(jwt)) => HttpResponse::Ok()
            .insert_header(("Cache-Control", "no-store"))
            .content_type("application/jwt")
            .body(jwt),
        Err(UserInfoError::Error(error)) => error::json(request, &error),
        Err(UserInfoError::Rejected(rejected)) => reject(request, &rejected),
    }
}

/// A successful response (OIDC Core §5.3.2).
enum UserInfo {
    Plain(Map<String, Value>),
    Signed(String),
}

async fn serve_userinfo(app: &App, token: Option<String>) -> Result<UserInfo, UserInfoError> {
    // 1. A genuine token of this server with scope `openid`, for any audience.
    let token = token.ok_or(UserInfoError::Rejected(Rejected::Missing))?;
    let (need, now) = (Need::scope("openid"), app.clock.now());
    let claims = introspection::verify_own(app.verifier(), &token, &need, now)
        .map_err(UserInfoError::Rejected)?;
    // 2. It is active, and it was issued for a user.
    let revoked = || UserInfoError::Rejected(Rejected::Revoked);
    if claims.rev.user_epoch.is_none() || !app.is_token_active(&claims).await? {
        let grant = claims.grant_id.as_deref().map(GrantId::from);
        restored::check_lost_grant(app, grant.as_ref()).await?;
        return Err(revoked());
    }
    let (user, client) = (UserId::from(claims.sub), ClientId::from(claims.client_id));
    let user = app.store.read(move |tx| tx.find_user(&user)).await?;
    let user = user.ok_or_else(revoked)?;
    // 3. The claims of its scope, as far as the client is still registered for it; signed if the client
    //    registered an algorithm.
    let scope = Scope::parse(&claims.scope).map_err(|_| revoked())?;
    let registration = app.registrations.find(&app.store, &client, now).await?;
    let registration = registration.ok_or_else(revoked)?;
    let scope = scope.retain(|token| registration.client.scopes.contains(token));
    let claims = userinfo::claims(&user, &scope);
    let Some(alg) = registration.client.userinfo_alg else {
        return Ok(UserInfo::Plain(claims));
    };
    let (keys, issuer) = (app.keys(), app.issuer.as_str().to_owned());
    let work = move || userinfo::sign(claims, &client, &issuer, alg, &keys);
    let signed = signing::sign(alg == Alg::RS256, work).await?;
    Ok(UserInfo::Signed(signed?))
}

/// Returns the response for a rejected access token (RFC 6750 §3).
fn reject(request: &HttpRequest, rejected: &Rejected) -> HttpResponse {
    let code = rejected.code().unwrap_or("401");
    let detail = Detail::new("bearer.rejected", rejected.reason());
    error::refused(request, code, detail, None);
    let status = StatusCode::from_u16(rejected.status()).unwrap_or(StatusCode::UNAUTHORIZED);
    let mut response = HttpResponse::build(status);
    response
        .insert_header(("Cache-Control", "no-store"))
        .insert_header(("WWW-Authenticate", rejected.www_authenticate("userinfo")));
    match rejected.code() {
        None => response.finish(),
        Some(code) => response.json(serde_json::json!({
            "error": code, "error_description": rejected.description(),
        })),
    }
}

/// Reads the token of the `Authorization` header (RFC 6750 §2.1): one header, the scheme in any case, one space,
/// one token. A token in the query (§2.3) is rejected.
fn header(request: &HttpRequest) -> Result<Option<String>, Rejected> {
    if extract::query(request).is_ok_and(|query| query.has("access_token")) {
        return Err(Rejected::Request);
    }
    let values = extract::authorization(request);
    let value = match values.as_slice() {
        [] => return Ok(None),
        [one] => std::str::from_utf8(one).map_err(|_| Rejected::Request)?,
        _ => return Err(Rejected::Request),
    };
    let (scheme, token) = value.split_once(' ').ok_or(Rejected::Request)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Ok(None);
    }
    let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b);
    if token.is_empty() || !token.bytes().all(is_allowed) {
        return Err(Rejected::Request);
    }
    Ok(Some(token.to_owned()))
}

/// Reads the token of the form (RFC 6750 §2.2).
async fn form(request: &HttpRequest, body: Payload) -> Result<Option<String>, Rejected> {
    if !request.headers().contains_key(CONTENT_TYPE) {
        return Ok(None);
    }
    match extract::form(request, body).await {
        Ok(form) => form
            .one("access_token")
            .map(|token| token.map(str::to_owned))
            .map_err(|_| Rejected::Request),
        Err(FormError::NotAForm) => Ok(None),
        Err(FormError::ErrorPage(_)) => Err(Rejected::Request),
    }
}
