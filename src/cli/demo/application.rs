//! The demo application and its API, which show step by step how a service uses Portcullis. The API verifies tokens
//! with `portcullis-verifier`, which reads the revocation feed.

mod messages;
mod revocation;
mod visit;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use actix_web::cookie::{Cookie, SameSite};
use actix_web::dev::ServerHandle;
use actix_web::http::StatusCode;
use actix_web::web::{self, Data, Form, Query};
use actix_web::{App as Actix, HttpRequest, HttpResponse, HttpServer};
use anyhow::Context;
use askama::Template;
use messages::message;
use portcullis_verifier::actix::Authorized;
use portcullis_verifier::{Rejected, Verifier};
use serde::Deserialize;
use serde_json::json;
use visit::{Finding, Outcome, Panel, Step, Visit};

use super::Exit;
use super::fixtures::{Fixtures, SCOPE, USERNAME};
use crate::app::App;
use crate::http::{Assets, FormTarget, Frame, PagePolicy, page, see_other};
use crate::id::ClientId;
use crate::secret::{Entropy, Secret, base64url, sha256};
use crate::time::Clock;

/// The settings and the state of the application.
struct Application {
    issuer: String,
    client_id: ClientId,
    client_secret: Secret,
    home: String,
    port: u16,
    password: Secret,
    clock: Clock,
    entropy: Entropy,
    http: reqwest::Client,
    visits: Mutex<HashMap<String, Visit>>,
    /// Held while a request changes a visit, so that two clicks have the effect of one.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Template)]
#[template(path = "demo.html")]
struct DemoPage<'a> {
    frame: &'a Frame,
    issuer: String,
    username: String,
    password: String,
    signed_in: bool,
    finding: Option<Finding>,
    steps: Vec<Step>,
    actions: Vec<Action>,
    csrf: String,
}

struct Action {
    label: String,
    path: String,
    primary: bool,
    id: String,
}

/// Starts the application on its own port.
pub async fn start(
    app: &Data<App>,
    fixtures: &Fixtures,
    port: u16,
) -> anyhow::Result<ServerHandle> {
    let application = Data::new(Application {
        issuer: app.issuer.to_string(),
        client_id: fixtures.client_id.clone(),
        client_secret: fixtures.client_secret.clone(),
        home: fixtures.application.clone(),
        port,
        password: fixtures.password.clone(),
        clock: app.clock.clone(),
        entropy: app.entropy.clone(),
        http: reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .build()?,
        visits: Mutex::default(),
        turn: tokio::sync::Mutex::default(),
    });
    let assets = Data::new(Assets::new(&app.config.branding.product));
    let verifier = Verifier::builder(app.issuer.as_str(), fixtures.audience.as_str())
        .subscriber(
            fixtures.api_client_id.as_str(),
            fixtures.api_client_secret.expose(),
        )
        .start()
        .await
        .context("the demo API cannot read the server's keys and revocations")?;
    let verifier = Data::new(verifier);
    let server = HttpServer::new(move || {
        Actix::new()
            .app_data(application.clone())
            .app_data(assets.clone())
            .app_data(verifier.clone())
            .route("/", web::get().to(home))
            .route("/start", web::post().to(begin))
            .route("/callback", web::get().to(callback))
            .route("/call", web::post().to(act))
            .route("/refresh", web::post().to(act))
            .route("/revoke", web::post().to(act))
            .route("/replay", web::post().to(act))
            .route("/reuse", web::post().to(act))
            .route("/reset", web::post().to(reset))
            .route("/api/orders", web::get().to(orders))
            .route("/assets/{name}", web::get().to(asset))
    })
    .workers(1)
    .disable_signals()
    .bind(("localhost", port))
    .map_err(|error| Exit {
        code: 1,
        message: format!("cannot listen on localhost:{port}: {error}"),
    })?
    .run();
    let handle = server.handle();
    actix_web::rt::spawn(server);
    Ok(handle)
}

async fn home(
    request: HttpRequest,
    application: Data<Application>,
    assets: Data<Assets>,
) -> HttpResponse {
    let (cookie, visit) = application.visit(&request);
    let signed_in = visit.tokens.is_some();
    let action = |label: &str, path: &str, primary: bool| Action {
        label: label.to_owned(),
        path: path.to_owned(),
        primary,
        id: format!("demo-{}", path.trim_start_matches('/')),
    };
    let mut actions = match signed_in {
        true => vec![action("Call the API", "/call", true)],
        false => vec![action("Sign in", "/start", true)],
    };
    if signed_in && !visit.revoked {
        actions.push(action("Refresh", "/refresh", false));
        actions.push(action("Revoke", "/revoke", false));
        actions.push(action("Steal the code", "/replay", false));
        actions.push(action("Steal a token", "/reuse", false));
    }
    if signed_in {
        actions.push(action("Start over", "/reset", false));
    }
    let template = DemoPage {
        frame: &assets.frame,
        issuer: application.issuer.clone(),
        username: USERNAME.to_owned(),
        password: application.password.expose().to_owned(),
        signed_in,
        finding: visit.finding(),
        steps: visit.all_steps(),
        actions,
        csrf: form_token(&cookie),
    };
    let allowed = PagePolicy {
        form_target: FormTarget::Also(&application.issuer),
        ..PagePolicy::default()
    };
    let mut response = page(StatusCode::OK, &template, &allowed);
    let cookie = Cookie::build(application.cookie_name(), cookie)
        .path("/")
        .http_only(true)
        .same_site(SameSite::Lax)
        .finish();
    if let Err(error) = response.add_cookie(&cookie) {
        tracing::error!(event = "http.cookie", %error);
    }
    response
}

#[derive(Deserialize)]
struct Token {
    csrf: String,
}

async fn begin(
    request: HttpRequest,
    application: Data<Application>,
    form: Form<Token>,
) -> HttpResponse {
    let (cookie, _) = application.visit(&request);
    if form.csrf != form_token(&cookie) {
        return see_other("/");
    }
    let mut visit = Visit::begin(&application.entropy);
    let challenge = base64url(&sha256(visit.verifier.as_bytes()));
    let parameters = [
        ("response_type", "code"),
        ("client_id", application.client_id.as_str()),
        ("redirect_uri", &application.callback()),
        ("scope", SCOPE),
        ("state", &visit.state),
        ("nonce", &visit.nonce),
        ("code_challenge", &challenge),
        ("code_challenge_method", "S256"),
    ];
    let url = format!("{}/oauth2/authorize", application.issuer);
    let query = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(parameters)
        .finish();
    visit.show(
        1,
        Outcome::Done,
        vec![Panel::new(
            "Sent through your browser",
            message("GET", &url, &parameters),
        )],
    );
    application.remember(&cookie, visit);
    see_other(&format!("{url}?{query}"))
}

#[derive(Deserialize)]
struct Answer {
    code: Option<String>,
    state: Option<String>,
    iss: Option<String>,
    error: Option<String>,
}

async fn callback(
    request: HttpRequest,
    application: Data<Application>,
    answer: Query<Answer>,
) -> HttpResponse {
    let (cookie, mut visit) = application.visit(&request);
    let parameters = [
        ("code", answer.code.as_deref()),
        ("error", answer.error.as_deref()),
        ("state", answer.state.as_deref()),
        ("iss", answer.iss.as_deref()),
    ];
    let parameters: Vec<(&str, &str)> = parameters
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect();
    // Every client must check that the response belongs to a request of this browser, and that it comes from the
    // expected issuer (RFC 9207).
    let is_expected = !visit.state.is_empty()
        && answer.state.as_deref() == Some(&visit.state)
        && answer.iss.as_deref() == Some(&application.issuer);
    let panel = Panel::new(
        "Came back through your browser",
        message("GET", &application.callback(), &parameters),
    );
    let outcome = match is_expected && answer.error.as_deref() == Some("access_denied") {
        true => Outcome::Refused,
        false => Outcome::of(is_expected && answer.code.is_some()),
    };
    visit.show(2, outcome, vec![panel]);
    if let (true, Some(code)) = (is_expected, &answer.code) {
        visit.code.clone_from(code);
        application.redeem(&mut visit).await;
    }
    application.remember(&cookie, visit);
    see_other("/")
}

/// Handles the buttons of a signed-in user, and redirects to the step that shows the result.
async fn act(
    request: HttpRequest,
    application: Data<Application>,
    form: Form<Token>,
) -> HttpResponse {
    let _turn = application.turn.lock().await;
    let (cookie, mut visit) = application.visit(&request);
    if form.csrf != form_token(&cookie) {
        return see_other("/");
    }
    let step = match request.path() {
        "/refresh" => {
            application.refresh(&mut visit).await;
            5
        }
        "/revoke" => {
            application.revoke(&mut visit).await;
            6
        }
        "/replay" => {
            application.replay_code(&mut visit).await;
            7
        }
        "/reuse" => {
            application.reuse_refresh_token(&mut visit).await;
            8
        }
        _ => {
            application.call(&mut visit).await;
            4
        }
    };
    application.remember(&cookie, visit);
    see_other(&format!("/#step-{step}"))
}

async fn reset(
    request: HttpRequest,
    application: Data<Application>,
    form: Form<Token>,
) -> HttpResponse {
    let (cookie, _) = application.visit(&request);
    if form.csrf == form_token(&cookie) {
        application.visits().remove(&cookie);
    }
    see_other("/")
}

/// Responds to a request to the demo API. The extractor has verified the token.
async fn orders(caller: Authorized) -> Result<HttpResponse, Rejected> {
    caller.require("orders:read")?;
    Ok(HttpResponse::Ok().insert_header(("Cache-Control", "no-store")).json(json!({
        "orders_of": caller.sub,
        "asked_by": caller.client_id,
        "orders": [{ "id": 1001, "item": "drawbridge chain, 12 m" }, { "id": 1002, "item": "oak beam" }],
    })))
}

async fn asset(assets: Data<Assets>, name: web::Path<String>) -> HttpResponse {
    match assets.find(&format!("/assets/{name}")) {
        Some((content, kind)) => HttpResponse::Ok()
            .insert_header(("Content-Type", kind))
            .body(content.to_owned()),
        None => HttpResponse::NotFound().finish(),
    }
}

impl Application {
    fn callback(&self) -> String {
        format!("{}/callback", self.home)
    }

    /// Returns the name of the cookie. It contains the port, because programs on all ports of a host share their
    /// cookies.
    fn cookie_name(&self) -> String {
        format!("portcullis-{}-demo", self.port)
    }

    fn visits(&self) -> MutexGuard<'_, HashMap<String, Visit>> {
        self.visits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the cookie of the browser, or a new one, and its visit.
    #[allow(
        clippy::disallowed_methods,
        reason = "the demo application is a client: its cookie protects nothing of the server"
    )]
    fn visit(&self, request: &HttpRequest) -> (String, Visit) {
        let value = request
            .cookie(&self.cookie_name())
            .map(|cookie| cookie.value().to_owned());
        let cookie = value
            .filter(|value| value.len() == 43)
            .unwrap_or_else(|| Secret::opaque(&self.entropy).expose().to_owned());
        let visit = self.visits().get(&cookie).cloned().unwrap_or_default();
        (cookie, visit)
    }

    fn remember(&self, cookie: &str, visit: Visit) {
        let mut visits = self.visits();
        // A demo has few browsers. The bound protects the memory.
        if visits.len() >= 1_000 {
            visits.clear();
        }
        visits.insert(cookie.to_owned(), visit);
    }
}

/// Returns the form token of a browser. It is derived from the cookie, which no other site can read.
fn form_token(cookie: &str) -> String {
    base64url(&sha256(format!("demo form {cookie}").as_bytes()))
}
