//! `/login`: the page and its form. What happened is recorded, and the authorization goes on at
//! `/oauth2/authorize`.

mod session;

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;

use super::access;
use super::answer::{Allowed, Frame, continue_to, page, see_other};
use super::assets::Assets;
use super::client_address::ClientAddress;
use super::error::{self, Notice};
use super::extract::{self, Browser, Jar};
use super::limits::whole_seconds;
use super::pending::{self, Pending, Stop, dispatcher};
use crate::accounts::password::{Password, Unusable, is_outdated};
use crate::accounts::throttle::{self, ACCOUNT_AND_ADDRESS, Attempt, Verdict};
use crate::accounts::user::{User, Username};
use crate::app::App;
use crate::config::limits::LOGIN_HINT_CHARS;
use crate::id::AuthorizationId;
use crate::metrics::LOGINS;
use crate::oauth::Detail;
use crate::oauth::next_step::Step;
use crate::oauth::params::Params;
use crate::secret::{Secret, base64url};
pub(super) use session::fresh_session;
use session::{Proof, begin_session};

#[derive(Template)]
#[template(path = "login.html")]
struct LoginPage<'a> {
    frame: &'a Frame,
    authorization: String,
    csrf: String,
    client: Option<String>,
    username: String,
    error: Option<String>,
    reauthenticate: bool,
    policy_uri: Option<String>,
    tos_uri: Option<String>,
}

/// What a form token of this page is for.
const PURPOSE: &str = "login";

/// `GET /login?authorization=ID`.
pub async fn get(request: HttpRequest, app: Data<App>, assets: Data<Assets>) -> HttpResponse {
    let id = match extract::query(&request).map(|query| {
        query
            .one("authorization")
            .map(|id| id.map(AuthorizationId::from))
    }) {
        Ok(Ok(Some(id))) => id,
        _ => return error::notice(&request, &app, &assets, Notice::NO_START),
    };
    let browser = Browser::of(&request, &app);
    match pending(&request, &app, &id, &browser).await {
        Ok(Some(pending)) => show(&app, &assets, &id, &browser, &pending, None),
        Ok(None) => see_other(&dispatcher(&id)),
        Err(stop) => stop.respond(&request, &app, &assets),
    }
}

/// `POST /login`.
pub async fn post(
    request: HttpRequest,
    app: Data<App>,
    assets: Data<Assets>,
    body: Payload,
) -> HttpResponse {
    match sign_in(&request, &app, &assets, body).await {
        Ok(response) => response,
        Err(stop) => stop.respond(&request, &app, &assets),
    }
}

/// The open authorization. `None` when it is to be refused, which a login would not change: the dispatcher
/// says so to the client. Where no login is due, one is still welcome: with another account, for instance.
async fn pending(
    request: &HttpRequest,
    app: &App,
    id: &AuthorizationId,
    browser: &Browser,
) -> Result<Option<Pending>, Stop> {
    let now = app.clock.now();
    let begun = pending::open(app, id, browser, now).await?;
    let params = Params::parse(begun.params.as_bytes())
        .map_err(|_| Stop::Notice(Notice::TOO_MANY_FIELDS))?;
    let pending = pending::pend(request, app, &params, now).await?;
    let is_refused = matches!(pending.next(Some(&begun), now), Step::Refuse(_));
    Ok((!is_refused).then_some(pending))
}

fn show(
    app: &App,
    assets: &Assets,
    id: &AuthorizationId,
    browser: &Browser,
    pending: &Pending,
    failed: Option<&str>,
) -> HttpResponse {
    let request = &pending.request;
    let known = pending
        .stored
        .session
        .as_ref()
        .map(|(_, username)| username.as_str().to_owned());
    let hint = request
        .login_hint
        .as_ref()
        .map(|hint| hint.chars().take(LOGIN_HINT_CHARS).collect());
    let template = LoginPage {
        frame: &assets.frame,
        authorization: id.to_string(),
        csrf: app.secret.form_token(browser.secret.expose(), PURPOSE),
        client: Some(request.client.name.clone()),
        reauthenticate: known.is_some(),
        username: failed
            .map(str::to_owned)
            .or(hint)
            .or(known)
            .unwrap_or_default(),
        error: failed.map(|_| "Invalid user name or password".to_owned()),
        policy_uri: request.client.policy_uri.clone(),
        tos_uri: request.client.tos_uri.clone(),
    };
    let allowed = Allowed {
        popup: true,
        ..Allowed::default()
    };
    page(StatusCode::OK, &template, &allowed)
}

async fn sign_in(
    request: &HttpRequest,
    app: &App,
    assets: &Assets,
    body: Payload,
) -> Result<HttpResponse, Stop> {
    // 1. The form is ours, and this browser's.
    let form = extract::own_form(request, app, body)
        .await
        .map_err(Stop::Notice)?;
    let bad_form = |_| Stop::Notice(Notice::BAD_FORM);
    let browser = Browser::of(request, app);
    let token = form.one("csrf").map_err(bad_form)?.unwrap_or_default();
    if browser.fresh
        || !app
            .secret
            .accepts_form(token, browser.secret.expose(), PURPOSE)
    {
        return Err(Stop::Notice(Notice::FORGED));
    }
    // 2. The authorization is open, and this browser's.
    let id = form
        .one("authorization")
        .map_err(bad_form)?
        .map(AuthorizationId::from);
    let id = id.ok_or(Stop::Notice(Notice::OTHER_BROWSER))?;
    let Some(pending) = pending(request, app, &id, &browser).await? else {
        return Ok(continue_to(&dispatcher(&id), assets));
    };
    // 3. The person is who they say.
    let typed = form.one("username").map_err(bad_form)?.unwrap_or_default();
    let password = form.verbatim("password").map_err(bad_form)?;
    let password = Password::parse(password).map_err(|unusable| {
        Stop::Notice(match unusable {
            Unusable::TooLong => Notice::PASSWORD_TOO_LONG,
            Unusable::Nul => Notice::PASSWORD_WITH_NUL,
        })
    })?;
    let username = Username::parse(typed);
    let name = username.as_ref().map_or("", Username::as_str);
    let user_ref = app.secret.user_ref(name);
    access::name_person(request, &user_ref);
    let shown: String = typed.chars().take(LOGIN_HINT_CHARS).collect();
    let device = Jar::Device.read(request, app);
    let (attempt, verdict) = admit(request, app, username.clone(), device.as_ref()).await?;
    let spray = match verdict {
        Verdict::Admitted { spray } => spray,
        put_off => {
            let (reason, wait, advice) = throttled(put_off);
            let detail = Detail::new("login.throttled", reason);
            error::refused(request, "429", detail, None);
            count("throttled");
            return Ok(error::put_off(request, assets, &advice, wait));
        }
    };
    let authenticated = authenticate(app, username, password).await;
    if authenticated.is_err() {
        let (attempt, now) = (attempt.clone(), app.clock.now());
        app.store
            .transaction(move |tx| tx.absolve(&attempt, false, now))
            .await?;
    }
    let Some((user, renewed)) = authenticated.inspect_err(|_| count("unavailable"))? else {
        let detail = Detail::new("login.failed", "credentials");
        error::log(request, detail, None);
        count("failed");
        if spray {
            error::log(request, Detail::high("login.spray", "network"), None);
        }
        return Ok(show(app, assets, &id, &browser, &pending, Some(&shown)));
    };
    // 4. A new session id, always.
    let device = device.unwrap_or_else(|| Secret::opaque(&app.entropy));
    let proof = Proof {
        attempt,
        account: throttle::account(&user_ref),
        device: device.hash(),
        renewed,
    };
    let cookie = begin_session(request, app, id.clone(), user, proof).await?;
    count("success");
    error::note(request, "session.rotated", "login");
    if pending.stored.session.is_some() {
        error::note(request, "login.reauth", "login");
    }
    let mut response = continue_to(&dispatcher(&id), assets);
    for (jar, value) in [(Jar::Session, &cookie), (Jar::Device, &device)] {
        if let Err(error) = response.add_cookie(&jar.keep(app, value)) {
            tracing::error!(event = "http.cookie", %error);
        }
    }
    Ok(response)
}

fn count(result: &'static str) {
    LOGINS.count(["password".into(), result.into()]);
}

/// Whether this try may be evaluated. It counts as a failure until it is none.
async fn admit(
    request: &HttpRequest,
    app: &App,
    username: Option<Username>,
    device: Option<&Secret>,
) -> Result<(Attempt, Verdict), Stop> {
    let (now, address) = (app.clock.now(), ClientAddress::of(request));
    let name = username.as_ref().map_or("", Username::as_str);
    let person = app.secret.user_ref(name);
    let device = device.map(Secret::hash);
    let admitted = app.store.transaction(move |tx| {
        let known = match &device {
            Some(device) => tx.is_known_device(device, username.as_ref(), now)?,
            None => false,
        };
        let attempt = match &device {
            Some(device) if known => {
                Attempt::from_known_device(&person, &base64url(device.as_bytes()))
            }
            _ => Attempt::from_anywhere(&person, address),
        };
        let verdict = tx.admit(&attempt, username.as_ref(), now)?;
        Ok((attempt, verdict))
    });
    Ok(admitted.await?)
}

/// What is said of a try that comes too early: the private reason, the wait, the advice.
fn throttled(verdict: Verdict) -> (&'static str, Duration, String) {
    let Verdict::Wait(wait) = verdict else {
        return (
            "in_a_row",
            ACCOUNT_AND_ADDRESS.most,
            "Use a browser that signed in before, or ask for a new password.".to_owned(),
        );
    };
    let seconds = whole_seconds(wait);
    let wait_for = match seconds {
        1 => "a second".to_owned(),
        2..=90 => format!("{seconds} seconds"),
        _ => format!("{} minutes", seconds.div_ceil(60)),
    };
    let advice = format!("Wait {wait_for}, then go back and try again.");
    ("wait", wait, advice)
}

/// The person of a name and password, with a renewed hash where the stored one is outdated. The
/// same work is done for a name that does not exist.
async fn authenticate(
    app: &App,
    username: Option<Username>,
    password: Password,
) -> Result<Option<(User, Option<String>)>, Stop> {
    let found = match username {
        Some(username) => {
            app.store
                .read(move |tx| tx.find_credentials(&username))
                .await?
        }
        None => None,
    };
    let (user, phc) = found.map_or((None, None), |(user, phc)| (Some(user), phc));
    let outdated = phc
        .as_deref()
        .is_some_and(|phc| is_outdated(phc, &app.config.login.argon2));
    let busy = |_| Stop::Notice(Notice::BUSY);
    let (password, right) = app.password_matches(password, phc).await.map_err(busy)?;
    let Some(user) = user.filter(|user| right && user.disabled_at.is_none()) else {
        return Ok(None);
    };
    let renewed = if outdated {
        Some(app.password_hash(password).await.map_err(busy)?)
    } else {
        None
    };
    Ok(Some((user, renewed)))
}
