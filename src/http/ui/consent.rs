//! `/consent`: the access that a client requests, and the user's decision.

use actix_web::http::StatusCode;
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;

use crate::accounts::session::Login;
use crate::admin::consents::{self, Decision, Granted};
use crate::admin::{self, AdminError, Context};
use crate::app::App;
use crate::audit::Actor;
use crate::http::assets::{Assets, Frame};
use crate::http::authorization_context::{
    self, AuthorizationContext, HandlerError, Resumed, dispatcher, login_page,
};
use crate::http::error::{self, ErrorPage};
use crate::http::extract::Browser;
use crate::http::response::{PagePolicy, continue_to, page, see_other};
use crate::http::ui::form::CsrfForm;
use crate::http::ui::scopes::{ScopeLine, lines};
use crate::http::ui::session::SignedInUser;
use crate::id::AuthorizationId;
use crate::oauth::Detail;
use crate::oauth::request::authorize::{Request, Selection};
use crate::oauth::request::next_action::NextAction;
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
    /// Where the user can sign in with another account.
    other_account: String,
    callback_host: String,
    scopes: Vec<ScopeLine>,
}

/// Handles `GET /consent?authorization=ID`.
pub async fn get(request: HttpRequest, app: Data<App>, assets: Data<Assets>) -> HttpResponse {
    let id = match authorization_context::id_in_query(&request) {
        Ok(Some(id)) => id,
        Ok(None) => return error::error_page(&request, &assets, ErrorPage::NO_START),
        Err(page) => return error::error_page(&request, &assets, page),
    };
    match show(&request, &app, &assets, id).await {
        Ok(response) => response,
        Err(error) => error.respond(&request, &app, &assets),
    }
}

/// Handles `POST /consent`.
pub async fn post(
    request: HttpRequest,
    app: Data<App>,
    assets: Data<Assets>,
    form: CsrfForm,
) -> HttpResponse {
    match decide(&request, &app, &assets, &form).await {
        Ok(response) => response,
        Err(error) => error.respond_to_form(&request, &app, &assets),
    }
}

/// A signed-in user and the authorization request that they decide on.
struct ConsentRequest {
    context: AuthorizationContext,
    login: Login,
    /// Whether the decision is still missing. Otherwise the user may replace it.
    is_due: bool,
}

/// Loads the open authorization with its signed-in user. Returns `None` if another step precedes consent, to which the
/// dispatcher leads: consent must never replace a sign-in that `prompt` or `max_age` requires.
async fn load(
    request: &HttpRequest,
    app: &App,
    id: &AuthorizationId,
    now: Timestamp,
) -> Result<Option<ConsentRequest>, HandlerError> {
    let browser = Browser::of(request, app);
    let resumed = authorization_context::resume(request, app, id, &browser, now).await?;
    // A sign-in to the account page grants nothing.
    let Resumed::Client(resumed) = resumed else {
        return Ok(None);
    };
    let (context, authorization) = *resumed;
    let is_due = match context.next_action(Some(&authorization), now) {
        NextAction::Consent => true,
        NextAction::Answer { .. } => false,
        NextAction::Login | NextAction::Refuse(_) => return Ok(None),
    };
    let login = context.login().cloned();
    Ok(login.map(|login| ConsentRequest {
        context,
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
    let loaded = load(request, app, &id, app.clock.now()).await?;
    let Some(loaded) = loaded.filter(|loaded| loaded.is_due) else {
        return Ok(see_other(&dispatcher(&id)));
    };
    error::note(request, "consent.prompted", "page");
    let scope = loaded.context.request.scope.clone();
    let described = app
        .page_store
        .read(move |tx| tx.find_scope_descriptions(&scope))
        .await?;
    let Request {
        client,
        callback,
        scope,
        ..
    } = &loaded.context.request;
    let username = loaded
        .context
        .stored
        .session
        .as_ref()
        .map(|(_, name)| name.as_str().to_owned());
    let template = ConsentPage {
        frame: &assets.frame,
        authorization: id.to_string(),
        csrf: app
            .secret
            .form_token(loaded.login.sid.as_str(), &purpose(&id)),
        client: client.name.clone(),
        client_uri: client.client_uri.clone(),
        policy_uri: client.policy_uri.clone(),
        tos_uri: client.tos_uri.clone(),
        username: username.unwrap_or_default(),
        other_account: login_page(&id),
        callback_host: host(callback.uri()),
        scopes: lines(scope, &described),
    };
    let policy = PagePolicy {
        popup: true,
        ..PagePolicy::default()
    };
    Ok(page(StatusCode::OK, &template, &policy))
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

async fn decide(
    request: &HttpRequest,
    app: &App,
    assets: &Assets,
    form: &CsrfForm,
) -> Result<HttpResponse, HandlerError> {
    // 1. The form was issued for this session and this authorization.
    let id = form.one("authorization")?.map(AuthorizationId::from);
    let id = id.ok_or(ErrorPage::OTHER_BROWSER)?;
    let token = form.token()?;
    // Without a session nothing is decided, and the dispatcher leads to sign-in and back.
    let Some(user) = SignedInUser::of_cookie(request, app).await? else {
        return Ok(continue_to(&dispatcher(&id), assets));
    };
    // Bound to the `sid` and not to the cookie, which a sign-in in another tab renews.
    token.verify(app, user.sid(), &purpose(&id))?;
    // 2. The authorization is open and the user is still signed in.
    let now = app.clock.now();
    let Some(request_for_consent) = load(request, app, &id, now).await? else {
        return Ok(continue_to(&dispatcher(&id), assets));
    };
    let ConsentRequest { context, login, .. } = request_for_consent;
    // 3. The selected scope is part of the requested one.
    let selection = context.request.select(&form.many("scope")?);
    let is_willing = form.one("decision")? == Some("allow");
    let granted = match selection {
        Selection::Unrequested => return Err(ErrorPage::TAMPERED.into()),
        Selection::WithoutOpenid if is_willing => {
            error::log(request, Detail::new("consent.tampered", "openid"), None);
            None
        }
        Selection::Grantable(scope) if is_willing => Some(scope),
        _ => None,
    };
    let event = match granted {
        Some(_) => "consent.given",
        None => "consent.denied",
    };
    // 4. The decision is stored, and the dispatcher continues.
    let client = &context.request.client;
    let decision = Decision {
        authorization: id.clone(),
        client_id: client.id.clone(),
        granted: granted.map(|scope| Granted {
            scope,
            client_shape: client.shape(),
            expires_at: now + app.config.login.consent_max_age.0,
        }),
        login,
    };
    let actor = Actor::User(decision.login.user_id.clone());
    let ctx = Context::new(actor, app.entropy.clone(), now);
    let decided = admin::execute(&app.page_store, ctx, move |tx, ctx| {
        consents::decide(tx, ctx, &decision)
    });
    match decided.await {
        Ok(()) => {}
        Err(AdminError::Unchanged(_)) => return Err(ErrorPage::ALREADY_DONE.into()),
        Err(error) => return Err(error.into()),
    }
    error::note(request, event, "page");
    Ok(continue_to(&dispatcher(&id), assets))
}
