//! `/consent`: who asks for what, and the person's answer.

use std::collections::HashMap;

use actix_web::http::StatusCode;
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;

use crate::accounts::consent::Consent;
use crate::accounts::session::Login;
use crate::app::App;
use crate::audit::{Actor, Event, Name, Target};
use crate::http::assets::Assets;
use crate::http::authorization_context::{self, AuthorizationContext, HandlerError, dispatcher};
use crate::http::error::{self, ErrorPage};
use crate::http::extract::{self, Browser, CookieKind};
use crate::http::response::{Frame, PagePolicy, continue_to, page, see_other};
use crate::id::{AuthorizationId, ConsentId};
use crate::oauth::Detail;
use crate::oauth::request::authorize::Request;
use crate::oauth::request::next_action::NextAction;
use crate::oauth::request::params::Params;
use crate::oauth::request::scope::Scope;
use crate::time::Timestamp;

#[derive(Template)]
#[template(path = "consent.html")]
struct ConsentPage<'a> {
    frame: &'a Frame,
    authorization: String,
    csrf: String,
    client: String,
    client_uri: Option<String>,
    policy_uri: Option<String>,
    tos_uri: Option<String>,
    username: String,
    callback_host: String,
    scopes: Vec<ScopeLine>,
}

/// One line of what is asked for.
struct ScopeLine {
    name: String,
    description: String,
    required: bool,
}

/// `GET /consent?authorization=ID`.
pub async fn get(request: HttpRequest, app: Data<App>, assets: Data<Assets>) -> HttpResponse {
    let id = match extract::query(&request).map(|query| {
        query
            .one("authorization")
            .map(|id| id.map(AuthorizationId::from))
    }) {
        Ok(Ok(Some(id))) => id,
        _ => return error::error_page(&request, &app, &assets, ErrorPage::NO_START),
    };
    match show(&request, &app, &assets, id).await {
        Ok(response) => response,
        Err(stop) => stop.respond(&request, &app, &assets),
    }
}

/// `POST /consent`.
pub async fn post(
    request: HttpRequest,
    app: Data<App>,
    assets: Data<Assets>,
    body: Payload,
) -> HttpResponse {
    match decide(&request, &app, &assets, body).await {
        Ok(response) => response,
        Err(stop) => stop.respond_to_form(&request, &app, &assets),
    }
}

/// A signed-in user and the authorization request that they decide on.
struct Asked {
    pending: AuthorizationContext,
    login: Login,
    /// Whether the user must decide. Otherwise they have, and may still change their mind.
    is_due: bool,
}

/// The open authorization with its signed-in user. `None` when another step is due first, which the
/// dispatcher knows: consent must never stand in for a login that `prompt` or `max_age` demand.
async fn asked(
    request: &HttpRequest,
    app: &App,
    id: &AuthorizationId,
    now: Timestamp,
) -> Result<Option<Asked>, HandlerError> {
    let browser = Browser::of(request, app);
    let begun = authorization_context::open(app, id, &browser, now).await?;
    let params = Params::parse(begun.params.as_bytes())
        .map_err(|_| HandlerError::ErrorPage(ErrorPage::TOO_MANY_FIELDS))?;
    let pending =
        authorization_context::load_authorization_request(request, app, &params, now).await?;
    let is_due = match pending.next_action(Some(&begun), now) {
        NextAction::Consent => true,
        NextAction::Answer { .. } => false,
        NextAction::Login | NextAction::Refuse(_) => return Ok(None),
    };
    let login = pending.login().cloned();
    Ok(login.map(|login| Asked {
        pending,
        login,
        is_due,
    }))
}

fn purpose(id: &AuthorizationId) -> String {
    format!("consent {id}")
}

async fn show(
    request: &HttpRequest,
    app: &App,
    assets: &Assets,
    id: AuthorizationId,
) -> Result<HttpResponse, HandlerError> {
    let asked = asked(request, app, &id, app.clock.now()).await?;
    let Some(asked) = asked.filter(|asked| asked.is_due) else {
        return Ok(see_other(&dispatcher(&id)));
    };
    error::note(request, "consent.prompted", "page");
    let scope = asked.pending.request.scope.clone();
    let described = app
        .store
        .read(move |tx| tx.find_scope_descriptions(&scope))
        .await?;
    let Request {
        client,
        callback,
        scope,
        ..
    } = &asked.pending.request;
    let username = asked
        .pending
        .stored
        .session
        .as_ref()
        .map(|(_, name)| name.as_str().to_owned());
    let template = ConsentPage {
        frame: &assets.frame,
        authorization: id.to_string(),
        csrf: app
            .secret
            .form_token(asked.login.sid.as_str(), &purpose(&id)),
        client: client.name.clone(),
        client_uri: client.client_uri.clone(),
        policy_uri: client.policy_uri.clone(),
        tos_uri: client.tos_uri.clone(),
        username: username.unwrap_or_default(),
        callback_host: host(callback.uri()),
        scopes: scope.iter().map(|name| line(name, &described)).collect(),
    };
    let allowed = PagePolicy {
        popup: true,
        ..PagePolicy::default()
    };
    Ok(page(StatusCode::OK, &template, &allowed))
}

fn host(uri: &str) -> String {
    url::Url::parse(uri).map_or_else(
        |_| String::new(),
        |url| match (url.host_str(), url.port()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (Some(host), None) => host.to_owned(),
            (None, _) => format!("{}:", url.scheme()),
        },
    )
}

fn line(name: &str, described: &HashMap<String, String>) -> ScopeLine {
    let own = match name {
        "openid" => Some("Know who you are when you sign in"),
        "profile" => Some("See your name"),
        "email" => Some("See your e-mail address"),
        "address" => Some("See your postal address"),
        "phone" => Some("See your phone number"),
        "offline_access" => Some("Keep this access when you are not using the application"),
        _ => None,
    };
    ScopeLine {
        name: name.to_owned(),
        description: own
            .map(str::to_owned)
            .or_else(|| described.get(name).cloned())
            .unwrap_or_else(|| "Use this permission on your behalf".to_owned()),
        required: name == "openid",
    }
}

async fn decide(
    request: &HttpRequest,
    app: &App,
    assets: &Assets,
    body: Payload,
) -> Result<HttpResponse, HandlerError> {
    // 1. The form is ours, and belongs to this login and this authorization.
    let form = extract::own_form(request, app, body)
        .await
        .map_err(HandlerError::ErrorPage)?;
    let bad_form = |_| HandlerError::ErrorPage(ErrorPage::BAD_FORM);
    let id = form
        .one("authorization")
        .map_err(bad_form)?
        .map(AuthorizationId::from);
    let id = id.ok_or(HandlerError::ErrorPage(ErrorPage::OTHER_BROWSER))?;
    let token = form.one("csrf").map_err(bad_form)?.unwrap_or_default();
    let cookie = CookieKind::Session
        .read(request, app)
        .ok_or(HandlerError::ErrorPage(ErrorPage::FORGED))?;
    let found = app.store.read(move |tx| tx.find_session(&cookie.hash()));
    let Some((session, _)) = found.await? else {
        return Ok(continue_to(&dispatcher(&id), assets));
    };
    // Bound to the login and not to its cookie, which a sign-in in another tab renews.
    let sid = session.login.sid.as_str();
    if !app.secret.accepts_form(token, sid, &purpose(&id)) {
        return Err(HandlerError::ErrorPage(ErrorPage::FORGED));
    }
    // 2. The authorization is open, and the person still signed in.
    let now = app.clock.now();
    let Some(asked) = asked(request, app, &id, now).await? else {
        return Ok(continue_to(&dispatcher(&id), assets));
    };
    // 3. What was ticked is part of what was asked for.
    let ticked = form.many("scope").map_err(bad_form)?;
    let requested = &asked.pending.request.scope;
    if ticked.iter().any(|scope| !requested.contains(scope)) {
        return Err(HandlerError::ErrorPage(ErrorPage::TAMPERED));
    }
    let granted = requested.retain(|scope| ticked.contains(&scope));
    let willing = form.one("decision").map_err(bad_form)? == Some("allow");
    let whole = granted.contains("openid") == requested.contains("openid");
    if willing && !whole {
        // The page always sends it along, so somebody took it out.
        error::log(request, Detail::new("consent.tampered", "openid"), None);
    }
    let allowed = willing && whole && !granted.is_empty();
    // 4. Remembered, and back to the dispatcher.
    if !record(app, &id, &asked, allowed.then_some(granted), now).await? {
        return Err(HandlerError::ErrorPage(ErrorPage::ALREADY_DONE));
    }
    error::note(
        request,
        if allowed {
            "consent.given"
        } else {
            "consent.denied"
        },
        "page",
    );
    Ok(continue_to(&dispatcher(&id), assets))
}

/// Writes the person's answer; `false` when the authorization is no longer open.
async fn record(
    app: &App,
    id: &AuthorizationId,
    asked: &Asked,
    granted: Option<Scope>,
    now: Timestamp,
) -> Result<bool, HandlerError> {
    let client = &asked.pending.request.client;
    let login = asked.login.clone();
    let consent = granted.as_ref().map(|granted| Consent {
        id: ConsentId::new(&app.entropy, now),
        user_id: login.user_id.clone(),
        client_id: client.id.clone(),
        scope: granted.to_string(),
        client_shape: client.shape(),
        granted_at: now,
        expires_at: now + app.config.login.consent_max_age.0,
    });
    let event = Event {
        at: now,
        name: if granted.is_some() {
            Name::ConsentGiven
        } else {
            Name::ConsentDenied
        },
        actor: Actor::User(login.user_id.clone()),
        target: Target::Client(client.id.clone()),
        reason: None,
        detail: serde_json::json!({ "scope": granted.as_ref().map(ToString::to_string) }),
    };
    let id = id.clone();
    let recorded = app.store.transaction(move |tx| {
        if let Some(mut consent) = consent {
            // Read here and not before: a consent that was withdrawn since must not come back.
            let active = tx.find_consent(&consent.user_id, &consent.client_id)?;
            consent.scope = union(active.as_ref(), &consent);
            tx.put_consent(&consent)?;
        }
        tx.put_audit(&event)?;
        let login = (&login.user_id, &login.sid);
        let is_open = tx.record_decision(&id, login, granted.as_ref(), now)?;
        if !is_open {
            // What the page could not record must not be remembered either.
            tx.undo();
        }
        Ok(is_open)
    });
    Ok(recorded.await?)
}

/// The scope to remember: what is granted now and what was granted before, unless the client's registration
/// changed since.
fn union(active: Option<&Consent>, new: &Consent) -> String {
    let before = active
        .filter(|active| active.client_shape.matches(&new.client_shape))
        .and_then(|active| Scope::parse(&active.scope).ok());
    match (before, Scope::parse(&new.scope)) {
        (Some(before), Ok(granted)) => before.union(&granted).to_string(),
        _ => new.scope.clone(),
    }
}
