//! `/oauth2/userinfo`: OIDC Core §5.3. The token comes in the header, or on POST in the form.

use actix_web::http::StatusCode;
use actix_web::http::header::CONTENT_TYPE;
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use portcullis_verifier::{Claims, Need, Rejected};
use serde_json::{Map, Value};

use super::extract::{self, Unread};
use super::{cors, error};
use crate::app::App;
use crate::id::{GrantId, UserId};
use crate::oauth::scope::Scope;
use crate::oauth::{Detail, Error, userinfo};

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

enum Stop {
    Rejected(Rejected),
    Error(Error),
}

impl From<crate::db::Error> for Stop {
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
        Err(rejected) => Err(Stop::Rejected(rejected)),
        Ok(token) => tell(app, token).await,
    };
    let mut response = match told {
        Ok(claims) => HttpResponse::Ok()
            .insert_header(("Cache-Control", "no-store"))
            .json(claims),
        Err(Stop::Error(error)) => error::json(request, &error),
        Err(Stop::Rejected(rejected)) => refuse(request, &rejected),
    };
    cors::allow(request, app, &mut response).await;
    response
}

async fn tell(app: &App, token: Option<String>) -> Result<Map<String, Value>, Stop> {
    // 1. A genuine token of ours with scope `openid`, whatever its audience.
    let token = token.ok_or(Stop::Rejected(Rejected::Missing))?;
    let need = Need::scope("openid");
    let claims = app
        .verifier()
        .verify_at(&token, &need, app.clock.now().secs())
        .map_err(Stop::Rejected)?;
    // 2. Nothing that it rests on has ended, and it is not revoked itself.
    let dead = || Stop::Rejected(Rejected::Claims("revoked"));
    let Claims {
        jti,
        grant_id,
        sub,
        scope,
        ..
    } = claims;
    let grant = GrantId::from(grant_id.ok_or_else(dead)?);
    let (user, now) = (UserId::from(sub), app.clock.now());
    let found = app.store.read(move |tx| {
        let stands = tx.find_standing_grant(&grant, now)?.is_some() && !tx.is_token_ended(&jti)?;
        if stands {
            tx.find_user(&user)
        } else {
            Ok(None)
        }
    });
    let user = found.await?.ok_or_else(dead)?;
    // 3. What its scope allows.
    let scope = Scope::parse(&scope).map_err(|_| dead())?;
    Ok(userinfo::claims(&user, &scope))
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
    error::log(request, Detail::new("bearer.rejected", reason), None);
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
        Err(Unread::NotAForm) => Ok(None),
        Err(Unread::Notice(_)) => Err(Rejected::Request),
    }
}
