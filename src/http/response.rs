//! Pages, redirects and cookies of responses.

use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::cookie::Cookie;
use actix_web::http::StatusCode;
use actix_web::http::header::LOCATION;
use askama::Template;

use crate::app::App;
use crate::http::assets::{Assets, Frame};
use crate::oauth::request::callback::Delivery;
use crate::secret::Secret;

/// Where the forms of a page may lead: the directive `form-action` (CSP3 §6.4.1). Chromium applies it to
/// every redirect that follows the POST, those of the client included, so no list of sources lets a form
/// lead out of the origin reliably.
#[derive(Clone, Copy, Default)]
pub enum FormTarget<'a> {
    /// This origin. A response that leads elsewhere must be [`continue_to`].
    #[default]
    SelfOnly,
    /// This origin, and these sources.
    Also(&'a str),
    /// Anywhere: the form of the Form Post response mode, which the client may answer with any redirect.
    Anywhere,
}

/// What the Content-Security-Policy of a page allows beyond its own origin (policy §8).
#[derive(Default)]
pub struct PagePolicy<'a> {
    /// Where the forms of the page may lead.
    pub form_target: FormTarget<'a>,
    /// The nonce of the page's one script.
    pub script_nonce: Option<&'a str>,
    /// Clients may open the page as a popup and keep the reference to it.
    pub popup: bool,
}

/// Renders a page.
pub fn page(status: StatusCode, template: &impl Template, policy: &PagePolicy<'_>) -> HttpResponse {
    let html = match template.render() {
        Ok(html) => html,
        Err(error) => {
            tracing::error!(event = "page.broken", %error);
            return HttpResponse::InternalServerError().finish();
        }
    };
    let script = policy.script_nonce.map_or_else(
        || "'none'".to_owned(),
        |nonce| format!("'nonce-{nonce}' 'strict-dynamic'"),
    );
    let form_action = match policy.form_target {
        FormTarget::SelfOnly => " form-action 'self';".to_owned(),
        FormTarget::Also(sources) => format!(" form-action 'self' {sources};"),
        // `default-src` does not cover forms (CSP3 §6.1.3).
        FormTarget::Anywhere => String::new(),
    };
    let csp = format!(
        "default-src 'none'; style-src 'self'; img-src 'self'; script-src {script};{form_action} \
         base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    );
    let mut response = HttpResponse::build(status);
    response
        .insert_header(("Content-Type", "text/html; charset=utf-8"))
        .insert_header(("Content-Security-Policy", csp))
        .insert_header(("X-Frame-Options", "DENY"))
        .insert_header(("Cache-Control", "no-store"));
    if !policy.popup {
        response.insert_header(("Cross-Origin-Opener-Policy", "same-origin"));
    }
    response.body(html)
}

/// Redirects with 303 to a path of this server or to a verified callback.
pub fn see_other(to: &str) -> HttpResponse {
    HttpResponse::SeeOther()
        .insert_header((LOCATION, to))
        .insert_header(("Cache-Control", "no-store"))
        .finish()
}

/// A page that continues without a click.
#[derive(Template)]
#[template(path = "continue.html")]
struct ContinuePage<'a> {
    frame: &'a Frame,
    to: &'a str,
}

/// Answers a form of this server whose response may leave the origin, now or after further redirects: a
/// page that continues to `to` by a refresh and by a link. The navigation that follows is a new one, so
/// the `form-action` of the page with the form does not apply to it.
pub fn continue_to(to: &str, assets: &Assets) -> HttpResponse {
    let template = ContinuePage {
        frame: &assets.frame,
        to,
    };
    let policy = PagePolicy {
        popup: true,
        ..PagePolicy::default()
    };
    page(StatusCode::OK, &template, &policy)
}

/// A page that submits its form without a click (OAuth 2.0 Form Post Response Mode §4).
#[derive(Template)]
#[template(path = "form_post.html")]
struct FormPost<'a> {
    frame: &'a Frame,
    action: String,
    fields: Vec<(String, String)>,
    nonce: String,
}

/// Sends the response of an authorization request to the client.
pub fn deliver(delivery: Delivery, app: &App, assets: &Assets) -> HttpResponse {
    match delivery {
        Delivery::Redirect(to) => see_other(&to),
        Delivery::Form { action, fields } => {
            let nonce = Secret::opaque(&app.entropy).expose().to_owned();
            let policy = PagePolicy {
                form_target: FormTarget::Anywhere,
                script_nonce: Some(&nonce),
                popup: true,
            };
            let form = FormPost {
                frame: &assets.frame,
                action,
                fields,
                nonce: nonce.clone(),
            };
            page(StatusCode::OK, &form, &policy)
        }
    }
}

/// Adds a cookie to a response.
pub(in crate::http) fn add_cookie(response: &mut HttpResponse, cookie: &Cookie<'_>) {
    if let Err(error) = response.add_cookie(cookie) {
        tracing::error!(event = "http.cookie", %error);
    }
}

/// Returns a duration in seconds, rounded up.
pub(in crate::http) fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}
