//! `/oauth2/userinfo`: OIDC Core §5.3. The token comes in the header, or on POST in the form.

use actix_web::http::StatusCode;
use actix_web::http::header::CONTENT_TYPE;
use actix_web::web::{self, Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use portcullis_verifier::{Need, Rejected};
use serde_json::{Map, Value};

use crate::app::App;
use crate::http::error;
use crate::http::extract::{self, FormError};
use crate::http::oauth::cors;
use crate::http::oauth::token;
use crate::id::{ClientId, GrantId, UserId};
use crate::oauth::request::scope::Scope;
use crate::oauth::{Detail, Error, introspection, userinfo};

/// `GET /oauth2/userinfo`.
pub async fn get(request: HttpRequest, app: Data<App>) -> HttpResponse {
    let token = header(&request);
    respond(&request, &app, token).await
}

/// `POST /oauth2/userinfo`.
pub async fn post(request: HttpRequest, app: Data<App>, body: Payload) -> HttpResponse {
    let token = match (header(&request), form(&request, body).await) {
        (Ok(Some(_)), Ok(Some(_))) => Err(Rejected::Request),
        (Ok(header), Ok(form)) => Ok(header.or(form)),
        (Err(rejected), _) | (_, Err(rejected)) => Err(rejected),
    };
    respond(&request, &app, token).await
}

enum HandlerError {
    Rejected(Rejected),
    Error(Error),
}

impl From<crate::db::Error> for HandlerError {
    fn from(error: crate::db::Error) -> Self {
        Self::Error(error.into())
    }
}

async fn respond(
    request: &HttpRequest,
    app: &App,
    token: Result<Option<String>, Rejected>,
) -> HttpResponse {
    let told = match token {
        Err(rejected) => Err(HandlerError::Rejected(rejected)),
        Ok(token) => serve_userinfo(app, token).await,
    };
    let mut response = match told {
        Ok(UserInfoRequest::Plain(claims)) => HttpResponse::Ok()
            .insert_header(("Cache-Control", "no-store"))
            .json(claims),
        Ok(UserInfoRequest::Signed(jwt)) => HttpResponse::Ok()
            .insert_header(("Cache-Control", "no-store"))
            .content_type("application/jwt")
            .body(jwt),
        Err(HandlerError::Error(error)) => error::json(request, &error),
        Err(HandlerError::Rejected(rejected)) => refuse(request, &rejected),
    };
    cors::allow(request, app, &mut response).await;
    response
}

/// OIDC Core §5.3.2.
enum UserInfoRequest {
    Plain(Map<String, Value>),
    Signed(String),
}

async fn serve_userinfo(app: &App, token: Option<String>) -> Result<UserInfoRequest, HandlerError> {
    // 1. A genuine token of ours with scope `openid`, whatever its audience.
    let token = token.ok_or(HandlerError::Rejected(Rejected::Missing))?;
    let (need, now) = (Need::scope("openid"), app.clock.now());
    let verified = introspection::verify_own(app.verifier(), &token, &need, now);
    let claims = verified.map_err(HandlerError::Rejected)?;
    // 2. About a person, and nothing that it rests on has ended.
    let dead = || HandlerError::Rejected(Rejected::Claims("revoked"));
    if claims.rev.user_epoch.is_none() || !app.is_token_active(&claims).await? {
        let grant = claims.grant_id.as_deref().map(GrantId::from);
        let checked = token::check_lost(app, grant.as_ref()).await;
        checked.map_err(HandlerError::Error)?;
        return Err(dead());
    }
    let (user, client) = (UserId::from(claims.sub), ClientId::from(claims.client_id));
    let user = app.store.read(move |tx| tx.find_user(&user)).await?;
    let user = user.ok_or_else(dead)?;
    // 3. What its scope allows, as far as its client is still registered for that; signed if the client
    //    registered that.
    let scope = Scope::parse(&claims.scope).map_err(|_| dead())?;
    let known = app.registrations.find(&app.store, &client, now).await?;
    let known = known.ok_or_else(dead)?;
    let scope = scope.retain(|token| known.client.scopes.contains(token));
    let told = userinfo::claims(&user, &scope);
    match known.client.userinfo_alg {
        None => Ok(UserInfoRequest::Plain(told)),
        Some(alg) => {
            let (keys, issuer) = (app.keys(), app.issuer.as_str().to_owned());
            let signed =
                web::block(move || userinfo::sign(told, &client, &issuer, alg, &keys)).await;
            let signed = signed.map_err(|error| HandlerError::Error(Error::unsigned(error)))?;
            Ok(UserInfoRequest::Signed(
                signed.map_err(HandlerError::Error)?,
            ))
        }
    }
}

/// RFC 6750 §3.
fn refuse(request: &HttpRequest, rejected: &Rejected) -> HttpResponse {
    let reason = match rejected {
        Rejected::Missing => "missing",
        Rejected::Request => "request",
        Rejected::Expired => "expired",
        Rejected::Scope { .. } => "scope",
        Rejected::Claims("revoked") => "revoked",
        _ => "invalid",
    };
    let code = rejected.code().unwrap_or("401");
    error::refused(request, code, Detail::new("bearer.rejected", reason), None);
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

/// RFC 6750 §2.1: one header, the scheme in any case, one space, one token. A token in the query
/// (§2.3) is refused.
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
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b);
    if token.is_empty() || !token.bytes().all(legal) {
        return Err(Rejected::Request);
    }
    Ok(Some(token.to_owned()))
}

/// RFC 6750 §2.2.
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
